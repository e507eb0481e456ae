-- Removing states, and what has expired.

-- Drops a live state whose turn is free, if its stamp is still the one given.
CREATE OR REPLACE FUNCTION {schema}.drop_{release}(
  p_now double precision, p_tenant text, p_kind text, p_id text, p_version bigint, p_commit bigint
) RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $body$
DECLARE
  s {schema}.states;
  v_now double precision;
BEGIN
  SELECT * INTO s FROM {schema}.states x WHERE x.tenant = p_tenant AND x.kind = p_kind AND x.id = p_id FOR UPDATE;
  v_now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
  IF NOT FOUND OR s.birth = 0 OR s.expires <= v_now OR (s.nonce <> 0 AND s.until > v_now)
      OR s.version <> p_version OR s.commit_id <> p_commit THEN
    RETURN false;
  END IF;
  IF s.xid > pg_current_xact_id()::text::bigint THEN
    RETURN NULL;
  END IF;
  PERFORM {schema}.bury_{release}(s.number, v_now, 0, true);
  RETURN true;
END $body$;

-- One bounded step: expired states, entries and items whose turns are free. Rows that others lock are for later.
CREATE OR REPLACE FUNCTION {schema}.sweep_{release}(
  p_now double precision, p_limit bigint,
  OUT tenants text[], OUT kinds text[], OUT ids text[], OUT entries integer, OUT items integer
) LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $body$
DECLARE
  v_now double precision := coalesce(p_now, extract(epoch FROM clock_timestamp()));
  v_xid bigint;
  v_left bigint := p_limit;
  v_bytes bigint;
  v_count integer;
  v_first bigint;
  s record;
  r record;
BEGIN
  tenants := '{}'; kinds := '{}'; ids := '{}'; entries := 0; items := 0;
  FOR s IN
    SELECT x.number, x.tenant, x.kind, x.id, x.xid FROM {schema}.states x
    WHERE x.expires <= v_now AND (x.nonce = 0 OR x.until <= v_now)
    ORDER BY x.expires LIMIT p_limit FOR UPDATE SKIP LOCKED
  LOOP
    v_xid := pg_current_xact_id()::text::bigint;
    CONTINUE WHEN s.xid > v_xid;
    PERFORM {schema}.bury_{release}(s.number, v_now, 0, true);
    tenants := tenants || s.tenant; kinds := kinds || s.kind; ids := ids || s.id;
    v_left := v_left - 1;
  END LOOP;

  FOR r IN
    SELECT y.scope, array_agg(y.section) AS sections, array_agg(y.key) AS keys FROM (
      SELECT e.scope, e.section, e.key FROM {schema}.entries e JOIN {schema}.states x ON x.number = e.scope
      WHERE e.expires <= v_now AND (x.nonce = 0 OR x.until <= v_now) ORDER BY e.expires LIMIT v_left
    ) y GROUP BY y.scope
  LOOP
    PERFORM FROM {schema}.states x
    WHERE x.number = r.scope AND (x.nonce = 0 OR x.until <= v_now) FOR UPDATE SKIP LOCKED;
    CONTINUE WHEN NOT FOUND;
    WITH gone AS (
      DELETE FROM {schema}.entries e USING unnest(r.sections, r.keys) w(section, key)
      WHERE e.scope = r.scope AND e.section = w.section AND e.key = w.key AND e.expires <= v_now
      RETURNING length(e.key) + CASE WHEN e.value IS NULL THEN 8 ELSE octet_length(e.value) END AS bytes
    )
    SELECT coalesce(sum(bytes), 0), count(*) INTO v_bytes, v_count FROM gone;
    UPDATE {schema}.states x SET entry_bytes = x.entry_bytes - v_bytes WHERE x.number = r.scope;
    entries := entries + v_count;
    v_left := v_left - v_count;
  END LOOP;

  -- Expired items lose their bytes and keep their places, so that positions stay dense, until they are at the head.
  FOR r IN
    SELECT y.scope, y.log, array_agg(y.position) AS positions FROM (
      SELECT i.scope, i.log, i.position FROM {schema}.items i JOIN {schema}.states x ON x.number = i.scope
      WHERE i.expires <= v_now AND i.mark < 2 AND (x.nonce = 0 OR x.until <= v_now) ORDER BY i.expires LIMIT v_left
    ) y GROUP BY y.scope, y.log
  LOOP
    SELECT x.number, x.logs->r.log AS head INTO s FROM {schema}.states x
    WHERE x.number = r.scope AND (x.nonce = 0 OR x.until <= v_now) FOR UPDATE SKIP LOCKED;
    CONTINUE WHEN NOT FOUND;
    SELECT coalesce(sum(octet_length(i.value)), 0) INTO v_bytes FROM {schema}.items i
    WHERE i.scope = r.scope AND i.log = r.log AND i.position = ANY (r.positions) AND i.mark < 2;
    UPDATE {schema}.items i SET value = '', mark = 2
    WHERE i.scope = r.scope AND i.log = r.log AND i.position = ANY (r.positions) AND i.mark < 2;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    SELECT i.position INTO v_first FROM {schema}.items i
    WHERE i.scope = r.scope AND i.log = r.log AND i.mark < 2 ORDER BY i.position LIMIT 1;
    v_first := coalesce(v_first, (s.head->>1)::bigint + 1);
    DELETE FROM {schema}.items i WHERE i.scope = r.scope AND i.log = r.log AND i.position < v_first;
    UPDATE {schema}.states x SET logs = jsonb_set(jsonb_set(x.logs, ARRAY[r.log, '0'], to_jsonb(v_first)),
      ARRAY[r.log, '3'], to_jsonb((s.head->>3)::bigint - v_bytes))
    WHERE x.number = r.scope;
    items := items + v_count;
    v_left := v_left - v_count;
  END LOOP;

  -- What nobody can ask for any more.
  FOR s IN
    SELECT x.number FROM {schema}.states x
    WHERE x.gone <= v_now AND x.birth = 0 AND (x.nonce = 0 OR x.until <= v_now)
    ORDER BY x.gone LIMIT p_limit FOR UPDATE SKIP LOCKED
  LOOP
    DELETE FROM {schema}.journal j WHERE j.scope = s.number;
    DELETE FROM {schema}.states x WHERE x.number = s.number;
  END LOOP;
  DELETE FROM {schema}.fences f WHERE f.at <= v_now - 86400;
  DELETE FROM {schema}.failures f WHERE f.number IN
    (SELECT y.number FROM {schema}.failures y ORDER BY y.number LIMIT p_limit) AND f.at <= v_now - 604800;
END $body$;
