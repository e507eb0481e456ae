-- Reads a state without its turn. All statements of a stable function see the moment at which it was called.
CREATE OR REPLACE FUNCTION {schema}.look_{release}(
  p_now double precision, p_tenant text, p_kind text, p_id text,
  p_inline bigint, p_sections text[], p_key_sections text[], p_keys text[], p_logs text[], p_tails bigint[],
  p_once text,
  OUT now double precision, OUT lease_counter bigint, OUT lease_until double precision,
  OUT held_by text, OUT held_since double precision, OUT wake_channel text, OUT wake_nonce bigint,
{found}
) LANGUAGE plpgsql STABLE SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $body$
DECLARE
  v_number bigint;
  v_head bigint;
BEGIN
  now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
  SELECT x.number, x.version, x.commit_id, x.birth, x.created, x.updated, x.expires, x.entry_bytes, x.owner, x.parent,
    x.labels, x.sections, x.logs
  INTO v_number, version, commit_id, birth, created, updated, expires, entry_bytes, owner, parent,
    labels, sections, logs
  FROM {schema}.states x WHERE x.tenant = p_tenant AND x.kind = p_kind AND x.id = p_id;
  IF NOT FOUND THEN RETURN; END IF;
{gather}
END $body$;

-- Reads a state, taking its turn on the way. The row is locked first: what is read is what was committed before
-- that, and stays while it is read.
CREATE OR REPLACE FUNCTION {schema}.enter_{release}(
  p_now double precision, p_tenant text, p_kind text, p_id text,
  p_inline bigint, p_sections text[], p_key_sections text[], p_keys text[], p_logs text[], p_tails bigint[],
  p_once text,
  p_partition integer, p_nonce bigint, p_seconds double precision, p_holder text, p_channel text,
  p_touch double precision,
  OUT now double precision, OUT lease_counter bigint, OUT lease_until double precision,
  OUT held_by text, OUT held_since double precision, OUT wake_channel text, OUT wake_nonce bigint,
{found}
) LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $body$
DECLARE
  v_number bigint;
  v_head bigint;
  v_nonce bigint;
  v_counter bigint;
  v_since double precision;
  v_until double precision;
  v_holder text;
  v_later double precision;
  v_line jsonb;
  v_free boolean;
  v_unused text;
BEGIN
  LOOP
    SELECT x.number, x.nonce, x.counter, x.since, x.until, x.holder, x.line,
      x.version, x.commit_id, x.birth, x.created, x.updated, x.expires, x.entry_bytes, x.owner, x.parent,
      x.labels, x.sections, x.logs
    INTO v_number, v_nonce, v_counter, v_since, v_until, v_holder, v_line,
      version, commit_id, birth, created, updated, expires, entry_bytes, owner, parent, labels, sections, logs
    FROM {schema}.states x WHERE x.tenant = p_tenant AND x.kind = p_kind AND x.id = p_id FOR UPDATE;
    EXIT WHEN FOUND;
    INSERT INTO {schema}.states(tenant, kind, id, partition, gone)
    VALUES (p_tenant, p_kind, p_id, p_partition,
      coalesce(p_now, extract(epoch FROM clock_timestamp())) + 604800) ON CONFLICT DO NOTHING;
  END LOOP;
  -- A turn that a crash forgets is found out by its commit; waiting for the disk would buy nothing.
  -- (An assignment needs no statement of its own.)
  v_unused := set_config('synchronous_commit', 'off', true);
  now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
  v_free := v_nonce <> p_nonce AND (v_nonce = 0 OR v_until <= now);
  IF v_line IS NOT NULL OR NOT (v_free OR v_nonce = p_nonce) THEN
    v_line := {schema}.waiting_{release}(coalesce(v_line, '[]'), now, p_nonce);
  END IF;
  IF v_nonce = p_nonce OR (v_free AND (v_line IS NULL OR v_line = '[]' OR (v_line#>>'{0,0}')::bigint = p_nonce)) THEN
    IF v_free THEN
      v_line := v_line - 0;
      v_counter := v_counter + 1;
      v_since := now;
    END IF;
    lease_counter := v_counter;
    lease_until := now + p_seconds;
    v_later := expires;
    IF expires > now THEN
      IF expires - now < p_touch / 2 THEN v_later := now + p_touch; END IF;
      v_later := greatest(v_later, lease_until);
    END IF;
    UPDATE {schema}.states x SET nonce = p_nonce, counter = v_counter, since = v_since, until = lease_until,
      holder = p_holder, line = nullif(v_line, '[]'), expires = v_later
    WHERE x.number = v_number;
    expires := v_later;
  ELSE
    IF NOT EXISTS (SELECT FROM jsonb_array_elements(v_line) one WHERE (one->>0)::bigint = p_nonce) THEN
      v_line := v_line || jsonb_build_array(jsonb_build_array(p_nonce, now, p_channel, p_holder));
    END IF;
    IF v_free THEN
      wake_nonce := (v_line#>>'{0,0}')::bigint;
      wake_channel := v_line#>>'{0,2}';
      v_nonce := wake_nonce; v_counter := v_counter + 1; v_since := now; v_until := now + 1;
      v_holder := v_line#>>'{0,3}';
      v_line := v_line - 0;
    END IF;
    UPDATE {schema}.states x SET nonce = v_nonce, counter = v_counter, since = v_since, until = v_until,
      holder = v_holder, line = nullif(v_line, '[]')
    WHERE x.number = v_number;
    held_by := v_holder;
    held_since := v_since;
    version := NULL;
    RETURN;
  END IF;
{gather}
END $body$;
