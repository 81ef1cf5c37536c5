-- Whether the cause for which a recording is parked may go away by itself: the cloud did not take it, or its file was
-- missing. Then it is tried again now and then; others (damaged, cancelled) stay until somebody asks for them. What the
-- cause of the older ones was is not known; a try does no harm.
ALTER TABLE recordings ADD COLUMN parked_for_now BIGINT NOT NULL DEFAULT 0;
UPDATE recordings SET parked_for_now = 1 WHERE parked_reason IS NOT NULL AND parked_reason NOT LIKE '%cancelled%';

-- The oldest of a kind is found without looking at all that wait.
DROP INDEX jobs_due;
CREATE INDEX jobs_oldest ON jobs (kind, created_at, id) WHERE state = 'open';
