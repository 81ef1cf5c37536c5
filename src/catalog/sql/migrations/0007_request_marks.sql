-- Which of the requests with its key an upload's name belongs to.
ALTER TABLE reservations ADD COLUMN request_mark TEXT;
UPDATE reservations SET request_mark = (SELECT r.fingerprint FROM idempotent_requests r
    WHERE r.scope = reservations.scope AND r.request_key = reservations.request_key AND r.answer IS NULL);
