-- Reads a state, taking its turn on the way when `p_nonce` is given: then the row is locked first,
-- and what is read is what was committed before that. Without a turn nothing is locked; either way
-- all of the state comes from one statement, so from one moment.
CREATE OR REPLACE FUNCTION {schema}.read_{release}(
  p_now double precision, p_tenant text, p_kind text, p_id text, p_partition integer,
  p_nonce bigint, p_seconds double precision, p_holder text, p_channel text, p_touch double precision,
  p_inline bigint, p_sections text[], p_key_sections text[], p_keys text[],
  p_logs text[], p_tails integer[], p_once text,
  OUT now double precision, OUT lease_counter bigint, OUT lease_until double precision,
  OUT held_by text, OUT held_since double precision, OUT wake_channel text, OUT wake_nonce bigint,
  OUT version bigint, OUT commit_id bigint, OUT birth bigint, OUT created double precision,
  OUT updated double precision, OUT expires double precision, OUT entry_bytes bigint,
  OUT owner text, OUT parent text, OUT labels text, OUT sections text, OUT logs text,
  OUT e_section text[], OUT e_key text[], OUT e_value bytea[], OUT e_counter bigint[], OUT e_version bigint[],
  OUT e_commit bigint[], OUT e_expires double precision[], OUT e_crc integer[],
  OUT t_log text[], OUT t_seq bigint[], OUT t_position bigint[], OUT t_id text[], OUT t_value bytea[],
  OUT t_expires double precision[], OUT t_crc integer[],
  OUT o_fingerprint text, OUT o_commit bigint, OUT o_result bytea, OUT o_at double precision, OUT o_crc integer
) LANGUAGE plpgsql SET enable_seqscan = off AS $body$
DECLARE
  s {schema}.states;
  v_later double precision;
  v_line jsonb;
  v_free boolean;
  v_mine boolean;
BEGIN
  now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
  IF p_nonce IS NOT NULL THEN
    LOOP
      SELECT * INTO s FROM {schema}.states x WHERE x.tenant = p_tenant AND x.kind = p_kind AND x.id = p_id FOR UPDATE;
      EXIT WHEN FOUND;
      INSERT INTO {schema}.states(tenant, kind, id, partition, gone)
      VALUES (p_tenant, p_kind, p_id, p_partition, now + 604800) ON CONFLICT DO NOTHING;
    END LOOP;
    -- A turn that a crash forgets is found out by its commit; waiting for the disk would buy nothing.
    PERFORM set_config('synchronous_commit', 'off', true);
    now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
    v_mine := s.nonce = p_nonce;
    v_free := NOT v_mine AND (s.nonce = 0 OR s.until <= now);
    IF s.line IS NOT NULL OR NOT (v_mine OR v_free) THEN
      v_line := {schema}.waiting_{release}(coalesce(s.line, '[]'), now, p_nonce);
    END IF;
    v_later := s.expires;
    IF s.expires > now THEN
      IF p_touch IS NOT NULL AND s.expires - now < p_touch / 2 THEN v_later := now + p_touch; END IF;
      v_later := greatest(v_later, now + p_seconds);
    END IF;
    IF v_mine OR (v_free AND (v_line IS NULL OR v_line = '[]' OR (v_line#>>'{0,0}')::bigint = p_nonce)) THEN
      IF NOT v_mine THEN
        IF v_line IS NOT NULL THEN v_line := v_line - 0; END IF;
        s.counter := s.counter + 1;
        s.since := now;
      END IF;
      lease_counter := s.counter;
      lease_until := now + p_seconds;
      UPDATE {schema}.states x SET nonce = p_nonce, counter = s.counter, since = s.since, until = lease_until,
        holder = p_holder, line = nullif(v_line, '[]'), expires = v_later
      WHERE x.number = s.number;
    ELSE
      IF NOT EXISTS (SELECT FROM jsonb_array_elements(v_line) one WHERE (one->>0)::bigint = p_nonce) THEN
        v_line := v_line || jsonb_build_array(jsonb_build_array(p_nonce, now, p_channel, p_holder));
      END IF;
      IF v_free THEN
        wake_nonce := (v_line#>>'{0,0}')::bigint;
        wake_channel := v_line#>>'{0,2}';
        s.nonce := wake_nonce; s.counter := s.counter + 1; s.since := now; s.until := now + 1;
        s.holder := v_line#>>'{0,3}';
        v_line := v_line - 0;
      END IF;
      UPDATE {schema}.states x SET nonce = s.nonce, counter = s.counter, since = s.since, until = s.until,
        holder = s.holder, line = nullif(v_line, '[]')
      WHERE x.number = s.number;
      held_by := s.holder;
      held_since := s.since;
      RETURN;
    END IF;
  ELSIF p_touch IS NOT NULL THEN
    UPDATE {schema}.states x SET expires = now + p_touch
    WHERE x.tenant = p_tenant AND x.kind = p_kind AND x.id = p_id AND x.expires > now AND x.expires - now < p_touch / 2;
  END IF;

  SELECT x.version, x.commit_id, x.birth, x.created, x.updated, x.expires, x.entry_bytes, x.owner, x.parent,
    x.labels::text, x.sections::text, x.logs::text, e.*, t.*, o.*
  INTO version, commit_id, birth, created, updated, expires, entry_bytes, owner, parent, labels, sections, logs,
    e_section, e_key, e_value, e_counter, e_version, e_commit, e_expires, e_crc,
    t_log, t_seq, t_position, t_id, t_value, t_expires, t_crc, o_fingerprint, o_commit, o_result, o_at, o_crc
  FROM {schema}.states x
  LEFT JOIN LATERAL (
    SELECT array_agg(y.section), array_agg(y.key), array_agg(y.value), array_agg(y.counter), array_agg(y.version),
      array_agg(y.commit_id), array_agg(y.expires), array_agg(y.crc)
    FROM (
      SELECT a.* FROM {schema}.entries a
      WHERE a.scope = x.number AND x.entry_bytes <= p_inline AND (p_sections IS NULL OR a.section = ANY (p_sections))
      UNION ALL
      SELECT b.* FROM unnest(p_key_sections, p_keys) w(section, key)
      JOIN {schema}.entries b ON b.scope = x.number AND b.section = w.section AND b.key = w.key
      WHERE x.entry_bytes > p_inline OR p_sections IS NOT NULL
    ) y
  ) e ON true
  LEFT JOIN LATERAL (
    SELECT array_agg(y.log), array_agg(y.seq), array_agg(y.position), array_agg(y.id), array_agg(y.value),
      array_agg(y.expires), array_agg(y.crc)
    FROM (
      SELECT i.* FROM unnest(p_logs, p_tails) w(log, tail)
      JOIN LATERAL (
        SELECT i.* FROM {schema}.items i
        WHERE i.scope = x.number AND i.log = w.log AND i.position > (x.logs->w.log->>1)::bigint - w.tail
        ORDER BY i.position
      ) i ON true
    ) y
  ) t ON true
  LEFT JOIN LATERAL (
    SELECT o.fingerprint, o.commit_id, o.result, o.at, o.crc FROM {schema}.once o
    WHERE o.scope = x.number AND o.key = p_once AND o.at > now - 86400
  ) o ON true
  WHERE x.tenant = p_tenant AND x.kind = p_kind AND x.id = p_id AND x.birth <> 0
    AND (x.expires IS NULL OR x.expires > now);
END $body$;
