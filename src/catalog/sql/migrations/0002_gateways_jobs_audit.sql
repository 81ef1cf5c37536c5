-- Several gateways on one catalogue; jobs that are kept to be looked at; an audit of every change.

-- The gateway whose disk has the local copy; NULL if none has. An empty text stands for the one that had this catalogue
-- alone: whoever opens it puts its id there.
ALTER TABLE recordings ADD COLUMN local_gateway TEXT;
UPDATE recordings SET local_gateway = '' WHERE in_local = 1;
ALTER TABLE recordings DROP COLUMN in_local;
-- Spool files that outlived a crash are looked up by it.
CREATE INDEX recordings_upload ON recordings (upload_id);
-- What the figures for operators and the queue at start ask for.
CREATE INDEX recordings_unsynced ON recordings (uploaded_at) WHERE in_supabase = 0;

ALTER TABLE tombstones ADD COLUMN local_gateway TEXT;
UPDATE tombstones SET local_gateway = '' WHERE pending_local = 1;
CREATE INDEX tombstones_pending ON tombstones (deleted_at) WHERE pending_supabase = 1 OR pending_local = 1;

-- A reservation outlives a crash: under its name an object may be in the bucket that no row knows.
DROP TABLE reservations;
CREATE TABLE reservations (
    session_id  TEXT NOT NULL,
    filename    TEXT NOT NULL,
    gateway     TEXT NOT NULL,
    process     TEXT NOT NULL,
    upload_id   TEXT NOT NULL,
    scope       TEXT,
    request_key TEXT,
    PRIMARY KEY (session_id, filename)
);

ALTER TABLE idempotent_requests ADD COLUMN gateway TEXT NOT NULL DEFAULT '';
CREATE INDEX idempotent_requests_age ON idempotent_requests (created_at);

-- `state` is open, done, parked or cancelled; an open job whose lease has not run out is running, any other open one
-- waits. `gateway` is who alone can do it, NULL if anybody can.
DROP INDEX jobs_due;
ALTER TABLE jobs RENAME TO jobs_before;
CREATE TABLE jobs (
    id           TEXT NOT NULL PRIMARY KEY,
    kind         TEXT NOT NULL,
    session_id   TEXT NOT NULL,
    filename     TEXT NOT NULL,
    state        TEXT NOT NULL,
    gateway      TEXT,
    parent_id    TEXT,
    attempts     BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    run_at       BIGINT NOT NULL,
    leased_until BIGINT NOT NULL,
    leased_by    TEXT,
    finished_at  BIGINT,
    last_error   TEXT,
    resume_point TEXT
);
-- Local copies are removed by jobs of their own now; the start leaves them for what is still pending.
INSERT INTO jobs (id, kind, session_id, filename, state, gateway, attempts, created_at, run_at, leased_until, last_error)
    SELECT id, kind, session_id, filename, 'open', CASE WHEN kind = 'sync' THEN '' END, attempts, created_at, run_at, 0,
           last_error
    FROM jobs_before;
DROP TABLE jobs_before;
CREATE UNIQUE INDEX jobs_open ON jobs (kind, session_id, filename) WHERE state = 'open';
CREATE INDEX jobs_due ON jobs (run_at) WHERE state = 'open';
CREATE INDEX jobs_children ON jobs (parent_id, state) WHERE parent_id IS NOT NULL;
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;

-- Ids are sorted by time. Rows are only ever added.
CREATE TABLE audit (
    id            TEXT NOT NULL PRIMARY KEY,
    at            BIGINT NOT NULL,
    action        TEXT NOT NULL,
    actor         TEXT NOT NULL,
    request_id    TEXT NOT NULL,
    session_id    TEXT NOT NULL,
    filename      TEXT NOT NULL,
    sha256_before TEXT,
    sha256_after  TEXT,
    detail        TEXT
);
CREATE INDEX audit_of_session ON audit (session_id, id);

-- Who shares this catalogue, and where the others reach it.
CREATE TABLE gateways (
    id      TEXT NOT NULL PRIMARY KEY,
    node    TEXT NOT NULL,
    url     TEXT NOT NULL,
    seen_at BIGINT NOT NULL
);

-- Small facts about the catalogue itself.
CREATE TABLE facts (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
