-- Reviews, decisions, appeals, their audit, and what is to be published of them.
-- An applied migration is never edited: a later one changes what it made.

-- One row of what is drawn once: the key that chooses which verdicts are audited.
CREATE TABLE installation (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  sampling_key bytea NOT NULL DEFAULT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
);
INSERT INTO installation DEFAULT VALUES;

-- People. Events name them by `id` only.
CREATE TABLE moderators (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  subject text NOT NULL UNIQUE,
  name text NOT NULL,
  preferences jsonb NOT NULL DEFAULT '{}',
  first_seen_at timestamptz NOT NULL DEFAULT now()
);

-- The newest event of each check that the relay has seen. `event` is its text: jsonb refuses what JSON allows.
CREATE TABLE checks (
  check_id text PRIMARY KEY,
  event_id text NOT NULL,
  type text NOT NULL,
  verdict text,
  score double precision,
  subject text NOT NULL,
  sha256 text,
  occurred_at timestamptz NOT NULL,
  event text NOT NULL
);
CREATE INDEX checks_occurred_at ON checks (occurred_at);
CREATE INDEX checks_sha256 ON checks (sha256);

-- How many reviews were opened on a day (UTC), and how many the daily limit held back.
CREATE TABLE review_days (
  day date NOT NULL,
  origin text NOT NULL,
  opened bigint NOT NULL DEFAULT 0,
  capped bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (day, origin)
);

CREATE TABLE reviews (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  check_id text NOT NULL UNIQUE,
  event_id text NOT NULL,
  -- Why the review was opened: uncertain (the verdict is review), audit (drawn), appeal.
  origin text NOT NULL CHECK (origin IN ('uncertain', 'audit', 'appeal')),
  -- With which it was drawn; none for an appeal, which does not come by chance.
  sampling_probability double precision CHECK (sampling_probability > 0 AND sampling_probability <= 1),
  -- What a moderator is to do now, or last did.
  purpose text NOT NULL CHECK (purpose IN ('uncertain', 'audit', 'appeal', 'second_opinion', 'escalation')),
  state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'decided', 'closed')),
  closed_reason text,
  needs_senior boolean NOT NULL DEFAULT false,
  -- Of the decision in force; 0 before the first.
  revision int NOT NULL DEFAULT 0,
  -- The decision in force.
  decision_id uuid,
  outcome text,
  bucket text NOT NULL,
  key text NOT NULL,
  sha256 text NOT NULL,
  verdict text NOT NULL,
  score double precision NOT NULL,
  threshold_low double precision NOT NULL,
  threshold_high double precision NOT NULL,
  -- Of the score to the nearer threshold.
  distance double precision NOT NULL,
  model text NOT NULL,
  policy text NOT NULL,
  metadata jsonb NOT NULL,
  event text NOT NULL,
  occurred_at timestamptz NOT NULL,
  opened_at timestamptz NOT NULL DEFAULT now(),
  -- Not offered before it: a second opinion waits until the first can no longer be undone.
  available_at timestamptz NOT NULL DEFAULT now(),
  due_at timestamptz NOT NULL,
  decided_at timestamptz,
  claimed_by uuid REFERENCES moderators,
  lease uuid,
  claimed_at timestamptz,
  claimed_until timestamptz,
  CHECK ((claimed_by IS NULL) = (lease IS NULL) AND (lease IS NULL) = (claimed_until IS NULL)),
  CHECK (lease IS NULL OR state = 'waiting')
);
CREATE INDEX reviews_appeals ON reviews (opened_at) WHERE state = 'waiting' AND purpose = 'appeal';
CREATE INDEX reviews_due ON reviews (due_at) WHERE state = 'waiting';
CREATE INDEX reviews_nearest ON reviews (distance, opened_at) WHERE state = 'waiting';
CREATE INDEX reviews_claimed ON reviews (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX reviews_opened_at ON reviews (opened_at, id);
CREATE INDEX reviews_newest ON reviews ((coalesce(decided_at, opened_at)), id);
CREATE INDEX reviews_sha256 ON reviews (sha256);
CREATE INDEX reviews_metadata ON reviews USING gin (metadata);

-- Who is not offered a review again.
CREATE TABLE review_exclusions (
  review_id uuid NOT NULL REFERENCES reviews ON DELETE CASCADE,
  moderator_id uuid NOT NULL REFERENCES moderators,
  why text NOT NULL CHECK (why IN ('skipped', 'decided', 'escalated')),
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (review_id, moderator_id)
);

CREATE TABLE appeals (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  check_id text NOT NULL,
  review_id uuid NOT NULL REFERENCES reviews,
  idempotency_key text,
  reason text NOT NULL,
  appellant text NOT NULL,
  opened_at timestamptz NOT NULL DEFAULT now(),
  decided_at timestamptz,
  UNIQUE (check_id, idempotency_key)
);
CREATE UNIQUE INDEX appeals_open ON appeals (review_id) WHERE decided_at IS NULL;

CREATE TABLE decisions (
  -- Also the id of its event.
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  review_id uuid NOT NULL REFERENCES reviews,
  revision int NOT NULL,
  moderator_id uuid NOT NULL REFERENCES moderators,
  outcome text NOT NULL CHECK (outcome IN ('generated', 'real', 'edited', 'cannot_tell')),
  basis text NOT NULL CHECK (basis IN ('opinion', 'source_found', 'uploader_said', 'credentials')),
  note text NOT NULL DEFAULT '',
  -- The review's purpose and reservation when it was decided, which an undo restores.
  purpose text NOT NULL,
  needs_senior boolean NOT NULL,
  second_opinion boolean NOT NULL,
  blind boolean NOT NULL,
  -- From the claim to the decision.
  seconds double precision NOT NULL,
  -- The claim under which it was made: a repeated request finds it again.
  lease uuid NOT NULL UNIQUE,
  decided_at timestamptz NOT NULL DEFAULT now(),
  publish_at timestamptz NOT NULL,
  undone_at timestamptz,
  supersedes uuid REFERENCES decisions,
  appeal_id uuid REFERENCES appeals
);
CREATE UNIQUE INDEX decisions_in_force ON decisions (review_id, revision, second_opinion)
  WHERE undone_at IS NULL;
CREATE INDEX decisions_moderator ON decisions (moderator_id, decided_at);
CREATE INDEX decisions_decided_at ON decisions (decided_at);
ALTER TABLE reviews ADD FOREIGN KEY (decision_id) REFERENCES decisions;

-- Events to publish, each once, not before `due_at`; confirmed when they are found on the stream once more,
-- some time later: a broker may lose in a power failure what it accepted a second before.
CREATE TABLE outbox (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  event_id text NOT NULL UNIQUE,
  event text NOT NULL,
  due_at timestamptz NOT NULL DEFAULT now(),
  published_at timestamptz,
  confirmed_at timestamptz
);
CREATE INDEX outbox_due ON outbox (due_at, id) WHERE confirmed_at IS NULL;
CREATE INDEX outbox_confirmed ON outbox (confirmed_at) WHERE confirmed_at IS NOT NULL;

-- Who did what. Rows are added and never changed; each has the digest of the row before it in its own.
CREATE TABLE audit (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT now(),
  actor text NOT NULL,
  action text NOT NULL,
  subject text NOT NULL,
  detail jsonb NOT NULL DEFAULT '{}',
  -- Its place in the chain and its digest, written when its transaction commits.
  number bigint UNIQUE,
  hash bytea
);
CREATE INDEX audit_subject ON audit (subject, number);

CREATE FUNCTION audit_hash(previous bytea, number bigint, row_ audit) RETURNS bytea
LANGUAGE sql STABLE SET timezone = 'UTC' AS $$
  SELECT sha256(previous || convert_to(
    jsonb_build_array(number, row_.id, to_char(row_.at, 'YYYY-MM-DD"T"HH24:MI:SS.US'),
                      row_.actor, row_.action, row_.subject, row_.detail)::text, 'UTF8'))
$$;

-- Runs at the commit, so that the lock that orders the chain is the last one that a transaction takes.
CREATE FUNCTION audit_chain() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  last record;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('dnf-moderation audit'));
  SELECT audit.number, audit.hash INTO last FROM audit
    WHERE audit.number IS NOT NULL ORDER BY audit.number DESC LIMIT 1;
  UPDATE audit SET
    number = coalesce(last.number, 0) + 1,
    hash = audit_hash(coalesce(last.hash, ''::bytea), coalesce(last.number, 0) + 1, audit)
    WHERE audit.id = NEW.id;
  RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER audit_chain AFTER INSERT ON audit
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit_chain();

-- Tells open pages what changed: one JSON object on the channel `reviews`.
CREATE FUNCTION reviews_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('reviews', json_build_object(
    'review', NEW.id, 'check_id', NEW.check_id, 'state', NEW.state, 'purpose', NEW.purpose,
    'revision', NEW.revision, 'claimed_by', NEW.claimed_by)::text);
  RETURN NULL;
END
$$;
CREATE TRIGGER reviews_opened AFTER INSERT ON reviews FOR EACH ROW EXECUTE FUNCTION reviews_notify();
CREATE TRIGGER reviews_changed AFTER UPDATE ON reviews FOR EACH ROW
  WHEN ((OLD.state, OLD.purpose, OLD.revision, OLD.decision_id, OLD.claimed_by, OLD.needs_senior)
    IS DISTINCT FROM (NEW.state, NEW.purpose, NEW.revision, NEW.decision_id, NEW.claimed_by, NEW.needs_senior))
  EXECUTE FUNCTION reviews_notify();
