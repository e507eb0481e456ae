-- What concerns a turn besides reading and committing.

-- Keeps a waiter in line; returns NULL when it is worth reading again, else the seconds the turn is still held.
CREATE OR REPLACE FUNCTION {schema}.wait_{release}(
  p_now double precision, p_tenant text, p_kind text, p_id text, p_nonce bigint
) RETURNS double precision LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $body$
DECLARE
  s {schema}.states;
  v_now double precision;
BEGIN
  SELECT * INTO s FROM {schema}.states x WHERE x.tenant = p_tenant AND x.kind = p_kind AND x.id = p_id FOR UPDATE;
  v_now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
  IF NOT FOUND OR s.nonce IN (0, p_nonce) OR s.until <= v_now OR s.line IS NULL THEN
    RETURN NULL;
  END IF;
  s.line := {schema}.waiting_{release}(s.line, v_now, p_nonce);
  IF NOT EXISTS (SELECT FROM jsonb_array_elements(s.line) one WHERE (one->>0)::bigint = p_nonce) THEN
    RETURN NULL;
  END IF;
  PERFORM set_config('synchronous_commit', 'off', true);
  UPDATE {schema}.states x SET line = s.line WHERE x.number = s.number;
  RETURN s.until - v_now;
END $body$;

-- Gives turns back or leaves their lines; keeps the record of a failed turn (`p_token` makes it one, sent twice).
CREATE OR REPLACE FUNCTION {schema}.leave_{release}(
  p_now double precision, p_tenant text, p_kind text, p_id text, p_nonce bigint,
  p_token bigint, p_failure bytea, p_crc integer,
  OUT wake_channel text, OUT wake_nonce bigint
) LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $body$
DECLARE
  s {schema}.states;
  v_now double precision;
  v_line jsonb;
BEGIN
  SELECT * INTO s FROM {schema}.states x WHERE x.tenant = p_tenant AND x.kind = p_kind AND x.id = p_id FOR UPDATE;
  v_now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
  IF p_failure IS NULL THEN
    PERFORM set_config('synchronous_commit', 'off', true);
  ELSIF NOT EXISTS (SELECT FROM {schema}.failures f
      WHERE f.tenant = p_tenant AND f.kind = p_kind AND f.id = p_id AND f.token = p_token) THEN
    INSERT INTO {schema}.failures(token, at, crc, tenant, kind, id, record)
    VALUES (p_token, v_now, p_crc, p_tenant, p_kind, p_id, p_failure);
    DELETE FROM {schema}.failures f WHERE f.tenant = p_tenant AND f.kind = p_kind AND f.id = p_id
      AND (f.at <= v_now - 604800 OR f.number <= (SELECT y.number FROM {schema}.failures y
        WHERE y.tenant = p_tenant AND y.kind = p_kind AND y.id = p_id ORDER BY y.number DESC OFFSET 20 LIMIT 1));
  END IF;
  IF s.number IS NULL OR p_nonce = 0 THEN
    RETURN;
  END IF;
  IF s.line IS NOT NULL THEN
    SELECT jsonb_agg(one ORDER BY place) INTO v_line
    FROM jsonb_array_elements({schema}.waiting_{release}(s.line, v_now, 0)) WITH ORDINALITY AS found(one, place)
    WHERE (one->>0)::bigint <> p_nonce;
  END IF;
  IF s.nonce = p_nonce THEN
    IF v_line IS NULL THEN
      s.nonce := 0;
    ELSE
      wake_nonce := (v_line#>>'{0,0}')::bigint;
      wake_channel := v_line#>>'{0,2}';
      s.nonce := wake_nonce; s.counter := s.counter + 1; s.since := v_now; s.until := v_now + 1;
      s.holder := v_line#>>'{0,3}';
      v_line := nullif(v_line - 0, '[]');
    END IF;
  ELSIF v_line IS NOT DISTINCT FROM s.line THEN
    RETURN;
  END IF;
  IF s.version = 0 AND s.nonce = 0 AND v_line IS NULL THEN
    DELETE FROM {schema}.states x WHERE x.number = s.number;
  ELSE
    UPDATE {schema}.states x SET nonce = s.nonce, counter = s.counter, since = s.since, until = s.until,
      holder = s.holder, line = v_line
    WHERE x.number = s.number;
  END IF;
END $body$;

-- Lengthens turns that are still held, and the lives of their states with them. Rows are locked in the order given.
CREATE OR REPLACE FUNCTION {schema}.renew_{release}(
  p_now double precision, p_tenants text[], p_kinds text[], p_ids text[], p_nonces bigint[], p_seconds double precision
) RETURNS boolean[] LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $body$
DECLARE
  v_now double precision;
  v_held boolean[] := '{}';
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  FOR i IN 1 .. cardinality(p_tenants) LOOP
    PERFORM FROM {schema}.states x
    WHERE x.tenant = p_tenants[i] AND x.kind = p_kinds[i] AND x.id = p_ids[i] AND x.nonce = p_nonces[i] FOR UPDATE;
    v_now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
    UPDATE {schema}.states x SET until = v_now + p_seconds,
      expires = CASE WHEN x.expires > v_now THEN greatest(x.expires, v_now + p_seconds) ELSE x.expires END
    WHERE x.tenant = p_tenants[i] AND x.kind = p_kinds[i] AND x.id = p_ids[i] AND x.nonce = p_nonces[i];
    v_held := v_held || FOUND;
  END LOOP;
  RETURN v_held;
END $body$;
