-- Endpoints of webhooks, what is delivered to them, and the tokens of machines.

CREATE TABLE webhook_endpoints (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  url text NOT NULL,
  description text NOT NULL DEFAULT '',
  event_types text[] NOT NULL CHECK (event_types <> '{}'),
  -- Signs every message; during a rotation the one before it signs too.
  secret text NOT NULL,
  old_secret text,
  old_secret_until timestamptz,
  state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'disabled')),
  disabled_reason text CHECK (disabled_reason IN ('by_request', 'gone', 'failing')),
  -- The first failure since the last acceptance.
  failing_since timestamptz,
  -- The receiver asked to be left alone until then.
  paused_until timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  CHECK ((state = 'disabled') = (disabled_reason IS NOT NULL))
);

-- Events to which an endpoint subscribes, as published; kept for replays.
CREATE TABLE webhook_events (
  id text PRIMARY KEY,
  type text NOT NULL,
  event text NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhook_events_at ON webhook_events (at);

CREATE TABLE webhook_deliveries (
  endpoint_id uuid NOT NULL REFERENCES webhook_endpoints ON DELETE CASCADE,
  event_id text NOT NULL REFERENCES webhook_events ON DELETE CASCADE,
  state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
  attempts int NOT NULL DEFAULT 0,
  next_attempt_at timestamptz NOT NULL DEFAULT now(),
  attempted_at timestamptz,
  -- Of the last attempt: the receiver's status, or the reason why there is none.
  status int,
  failure text,
  PRIMARY KEY (endpoint_id, event_id)
);
CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (endpoint_id, next_attempt_at)
  WHERE state = 'pending';
CREATE INDEX webhook_deliveries_event ON webhook_deliveries (event_id);

-- Tokens of machines; the token itself is nowhere, only its digest.
CREATE TABLE api_tokens (
  id text PRIMARY KEY,
  name text NOT NULL,
  sha256 bytea NOT NULL UNIQUE,
  scopes text[] NOT NULL CHECK (scopes <> '{}'),
  created_by text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz,
  revoked_at timestamptz
);
