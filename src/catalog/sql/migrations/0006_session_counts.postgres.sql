-- How many recordings a session has: counting the entries of an index takes as long as reading a page of them. The
-- triggers keep it in the transaction of the change. A session that is empty again keeps its row.
LOCK TABLE recordings IN SHARE ROW EXCLUSIVE MODE; -- what comes between the count and the triggers would not be counted
CREATE TABLE session_counts (
    session_id TEXT NOT NULL PRIMARY KEY,
    recordings BIGINT NOT NULL
);
INSERT INTO session_counts (session_id, recordings) SELECT session_id, COUNT(*) FROM recordings GROUP BY session_id;
CREATE FUNCTION recordings_come() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO session_counts AS counted (session_id, recordings) VALUES (NEW.session_id, 1)
        ON CONFLICT (session_id) DO UPDATE SET recordings = counted.recordings + 1;
    RETURN NULL;
END $$;
CREATE FUNCTION recordings_go() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    UPDATE session_counts SET recordings = recordings - 1 WHERE session_id = OLD.session_id;
    RETURN NULL;
END $$;
CREATE TRIGGER recordings_come AFTER INSERT ON recordings FOR EACH ROW EXECUTE FUNCTION recordings_come();
CREATE TRIGGER recordings_go AFTER DELETE ON recordings FOR EACH ROW EXECUTE FUNCTION recordings_go();
