-- Files that came in past the gateway and that nobody has read yet: their rows follow them as they change.
CREATE INDEX recordings_following ON recordings (session_id, filename)
    WHERE upload_id = '' AND sha256 IS NULL AND in_supabase = 0;

-- Parked jobs are counted for operators; few are, among all that are kept.
CREATE INDEX jobs_parked ON jobs (kind) WHERE state = 'parked';
