-- Times are microseconds since 1970 UTC; digests are 64 hex digits; names are as in the object key.

CREATE TABLE recordings (
    session_id        TEXT NOT NULL,
    filename          TEXT NOT NULL,
    size_bytes        BIGINT NOT NULL,
    sha256            TEXT,
    content_type      TEXT NOT NULL,
    original_filename TEXT,
    durability        TEXT NOT NULL,
    in_supabase       BIGINT NOT NULL,
    in_local          BIGINT NOT NULL,
    uploaded_at       BIGINT NOT NULL,
    parked_reason     TEXT,
    upload_id         TEXT NOT NULL,
    PRIMARY KEY (session_id, filename)
);
CREATE INDEX recordings_newest ON recordings (session_id, uploaded_at, filename);

-- Names given to uploads on their way in. They belong to one process: cleared when it starts.
CREATE TABLE reservations (
    session_id TEXT NOT NULL,
    filename   TEXT NOT NULL,
    PRIMARY KEY (session_id, filename)
);

-- What was deleted. A row is never removed: a name that was deleted is not used again.
CREATE TABLE tombstones (
    session_id       TEXT NOT NULL,
    filename         TEXT NOT NULL,
    deleted_at       BIGINT NOT NULL,
    pending_supabase BIGINT NOT NULL,
    pending_local    BIGINT NOT NULL,
    PRIMARY KEY (session_id, filename)
);

-- Sessions deleted while the bucket could not be asked what they hold. Removed when it was.
CREATE TABLE session_tombstones (
    session_id TEXT NOT NULL PRIMARY KEY,
    deleted_at BIGINT NOT NULL
);

CREATE TABLE jobs (
    id           TEXT NOT NULL PRIMARY KEY,
    kind         TEXT NOT NULL,
    session_id   TEXT NOT NULL,
    filename     TEXT NOT NULL,
    attempts     BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    run_at       BIGINT NOT NULL,
    leased_until BIGINT NOT NULL,
    last_error   TEXT,
    UNIQUE (kind, session_id, filename)
);
CREATE INDEX jobs_due ON jobs (run_at);

-- Requests that carried an Idempotency-Key. `answer` is NULL while the first one runs.
CREATE TABLE idempotent_requests (
    scope       TEXT NOT NULL,
    request_key TEXT NOT NULL,
    fingerprint TEXT,
    answer      TEXT,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (scope, request_key)
);
