-- Commits parts of one or several states, all or none: locks their rows in the order they are given
-- (by address, for everybody the same), then checks every condition, and only then writes.
-- Arrays hold the rows of all parts, one after the other:
--   p_texts    tenant, kind, id, owner, parent, labels, where a copy's logs begin
--   p_numbers  partition, birth, how to compare the base (0 not, 1 absent, 2 stamp), its version, its commit, flags,
--              where checks, shrinks, deletes, puts, increments, appends and labels end, the record's CRC,
--              a copy's version; a row of zeros comes first
--   p_times    lifetime, a copy's first and last time
--   c_...      checks: name and key; kind (0 entry, 1 section, 2 log), version, commit
--   l_...      shrinks: kind (0 cut, 1 trim, 2 edit), position, seq, CRC
--   i_, a_...  increments: by, whether from 0; appends: log and id; whether unique, CRC
-- Flags: 1 clear, 2 owner, 4 parent, 8 labels, 16 lifetime, 32 sliding, 64 nothing of this state changes.
CREATE OR REPLACE FUNCTION {schema}.commit_{release}(
  p_now double precision, p_commit bigint, p_resent boolean, p_durable boolean,
  p_nonce bigint, p_leased integer, p_release boolean,
  p_once_part integer, p_once text, p_fingerprint text, p_result bytea, p_once_crc integer,
  p_texts text[], p_numbers bigint[], p_times double precision[], p_records bytea[],
  c_names text[], c_numbers bigint[], l_log text[], l_numbers bigint[], l_value bytea[], d_names text[],
  p_names text[], p_value bytea[], p_ttl double precision[], p_crc integer[], i_names text[], i_numbers bigint[],
  a_names text[], a_value bytea[], a_ttl double precision[], a_numbers bigint[], b_label bytea[],
  OUT status text, OUT what text, OUT part integer, OUT place integer,
  OUT found_version bigint, OUT found_commit bigint,
  OUT versions bigint[], OUT commits bigint[], OUT births bigint[], OUT ends double precision[],
  OUT touched text[], OUT sums bigint[], OUT wake_channel text, OUT wake_nonce bigint
) LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $body$
DECLARE
  n CONSTANT integer := cardinality(p_texts) / 7;
  h integer;
  v_numbers bigint[] := '{}';
  v_made bigint[] := '{}';
  v_inserted boolean;
  s {schema}.states;
  r record;
  v_now double precision := p_now;
  v_updated double precision;
  v_xid bigint;
  v_alive boolean;
  v_lives boolean[] := '{}';
  v_fresh boolean;
  v_ver bigint;
  v_logs jsonb;
  v_sections jsonb;
  v_stamp jsonb;
  v_head jsonb;
  v_log text;
  v_first bigint; v_last bigint; v_next bigint; v_size bigint; v_from bigint;
  v_touched jsonb;
  v_ranges jsonb;
  v_removed integer;
  v_count integer;
  v_bytes bigint;
  v_sum numeric;
  v_expires double precision;
  v_changed boolean;
  v_line jsonb;
BEGIN
  FOR i IN 1 .. n LOOP
    h := 15 * i;
    v_inserted := false;
    LOOP
      SELECT * INTO s FROM {schema}.states x
      WHERE x.tenant = p_texts[7 * i - 6] AND x.kind = p_texts[7 * i - 5] AND x.id = p_texts[7 * i - 4] FOR UPDATE;
      EXIT WHEN FOUND;
      INSERT INTO {schema}.states(tenant, kind, id, partition, gone)
      VALUES (p_texts[7 * i - 6], p_texts[7 * i - 5], p_texts[7 * i - 4], p_numbers[h + 1],
        coalesce(p_now, extract(epoch FROM clock_timestamp())) + 604800) ON CONFLICT DO NOTHING;
      v_inserted := FOUND;
    END LOOP;
    v_numbers := v_numbers || s.number;
    IF v_inserted THEN v_made := v_made || s.number; END IF;
  END LOOP;
  v_now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
  v_xid := pg_current_xact_id()::text::bigint;
  sums := '{}';

  -- A commit whose reply was lost comes again. It is done once, whichever sending gets here first.
  IF p_resent THEN
    IF EXISTS (SELECT FROM {schema}.journal j WHERE j.scope = ANY (v_numbers) AND j.commit_id = p_commit) THEN
      status := 'again';
      FOR i IN 1 .. n LOOP
        h := 15 * i;
        SELECT * INTO s FROM {schema}.states x WHERE x.number = v_numbers[i];
        SELECT j.version, j.dropped INTO r FROM {schema}.journal j WHERE j.scope = s.number AND j.commit_id = p_commit;
        IF FOUND THEN
          versions := versions || CASE WHEN r.dropped THEN NULL ELSE r.version END; commits := commits || p_commit;
        ELSE
          versions := versions || CASE WHEN s.birth <> 0 THEN s.version END; commits := commits || s.commit_id;
        END IF;
        births := births || s.birth;
        ends := ends || s.expires;
        touched := touched || s.logs::text;
        FOR j IN p_numbers[h - 4] + 1 .. p_numbers[h + 11] LOOP
          sums := sums || (SELECT e.counter FROM {schema}.entries e
            WHERE e.scope = s.number AND e.section = i_names[2 * j - 1] AND e.key = i_names[2 * j]);
        END LOOP;
      END LOOP;
      RETURN;
    END IF;
    INSERT INTO {schema}.fences VALUES (p_commit, v_now) ON CONFLICT DO NOTHING;
  ELSIF EXISTS (SELECT FROM {schema}.fences f WHERE f.commit_id = p_commit) THEN
    status := 'fenced';
    RETURN;
  END IF;

  <<conditions>>
  FOR i IN 1 .. n LOOP
    part := i;
    h := 15 * i;
    -- Of one state the row is here already.
    IF n > 1 THEN SELECT * INTO s FROM {schema}.states x WHERE x.number = v_numbers[i]; END IF;
    IF p_leased = i AND s.nonce <> p_nonce THEN
      status := 'lost';
      EXIT conditions;
    END IF;
    -- The feed is in the order of transactions, so a state's own must not go backwards.
    IF s.xid > v_xid THEN
      status := 'retry';
      EXIT conditions;
    END IF;
    v_alive := s.birth <> 0
      AND (s.expires IS NULL OR s.expires > v_now OR (p_leased = i AND p_numbers[h + 2] = s.birth));
    v_lives := v_lives || v_alive;
    v_fresh := NOT v_alive OR p_numbers[h + 6] & 1 = 1;
    IF p_numbers[h + 2] <> (CASE WHEN v_alive THEN s.birth ELSE 0 END) THEN
      status := 'conflict'; what := 'birth';
      found_commit := CASE WHEN v_alive THEN s.birth ELSE 0 END;
      EXIT conditions;
    END IF;
    IF (p_numbers[h + 3] = 1 AND v_alive) OR (p_numbers[h + 3] = 2
        AND NOT (v_alive AND s.version = p_numbers[h + 4] AND s.commit_id = p_numbers[h + 5])) THEN
      status := 'conflict'; what := 'base';
      IF v_alive THEN found_version := s.version; found_commit := s.commit_id; END IF;
      EXIT conditions;
    END IF;
    FOR j IN p_numbers[h - 8] + 1 .. p_numbers[h + 7] LOOP
      found_version := NULL; found_commit := NULL;
      IF NOT v_alive THEN
        NULL;
      ELSIF c_numbers[3 * j - 2] = 0 THEN
        SELECT e.version, e.commit_id INTO found_version, found_commit FROM {schema}.entries e
        WHERE e.scope = s.number AND e.section = c_names[2 * j - 1] AND e.key = c_names[2 * j]
          AND (e.expires IS NULL OR e.expires > v_now);
      ELSIF c_numbers[3 * j - 2] = 1 THEN
        v_stamp := s.sections->c_names[2 * j - 1];
        found_version := (v_stamp->>0)::bigint; found_commit := (v_stamp->>1)::bigint;
      ELSE
        v_stamp := s.logs->c_names[2 * j - 1];
        found_version := (v_stamp->>4)::bigint; found_commit := (v_stamp->>5)::bigint;
      END IF;
      IF found_version IS DISTINCT FROM c_numbers[3 * j - 1] OR found_commit IS DISTINCT FROM c_numbers[3 * j] THEN
        status := 'conflict'; what := 'check'; place := j;
        EXIT conditions;
      END IF;
    END LOOP;
    FOR j IN p_numbers[h - 7] + 1 .. p_numbers[h + 8] LOOP
      CONTINUE WHEN l_numbers[4 * j - 3] <> 2;
      v_from := NULL;
      IF NOT v_fresh AND NOT EXISTS (
        SELECT FROM generate_series(p_numbers[h - 7] + 1, p_numbers[h + 8]) k WHERE l_log[k] = l_log[j]
          AND ((l_numbers[4 * k - 3] = 0 AND l_numbers[4 * k - 2] <= l_numbers[4 * j - 2])
            OR (l_numbers[4 * k - 3] = 1 AND l_numbers[4 * k - 2] > l_numbers[4 * j - 2]))
      ) THEN
        SELECT t.seq INTO v_from FROM {schema}.items t
        WHERE t.scope = s.number AND t.log = l_log[j] AND t.position = l_numbers[4 * j - 2];
      END IF;
      IF v_from IS DISTINCT FROM l_numbers[4 * j - 1] THEN
        status := 'conflict'; what := 'edit'; place := j; found_version := v_from;
        EXIT conditions;
      END IF;
    END LOOP;
    FOR j IN p_numbers[h - 4] + 1 .. p_numbers[h + 11] LOOP
      v_sum := 0;
      IF NOT v_fresh AND i_numbers[2 * j] = 0 THEN
        SELECT e.counter INTO r FROM {schema}.entries e
        WHERE e.scope = s.number AND e.section = i_names[2 * j - 1] AND e.key = i_names[2 * j]
          AND (e.expires IS NULL OR e.expires > v_now);
        IF FOUND AND r.counter IS NULL THEN
          status := 'refused'; what := 'no counter'; place := j;
          EXIT conditions;
        END IF;
        v_sum := coalesce(r.counter, 0);
      END IF;
      v_sum := v_sum + i_numbers[2 * j - 1];
      IF v_sum NOT BETWEEN -9223372036854775808 AND 9223372036854775807 THEN
        status := 'refused'; what := 'overflow'; place := j;
        EXIT conditions;
      END IF;
      sums := sums || v_sum::bigint;
    END LOOP;
    IF p_once_part = i AND v_alive AND EXISTS (SELECT FROM {schema}.once o
        WHERE o.scope = s.number AND o.key = p_once AND o.at > v_now - 86400) THEN
      status := 'conflict'; what := 'once';
      EXIT conditions;
    END IF;
  END LOOP conditions;

  IF status IS NOT NULL THEN
    DELETE FROM {schema}.states x WHERE x.number = ANY (v_made);
    RETURN;
  END IF;
  status := 'ok';
  part := NULL; found_version := NULL; found_commit := NULL;
  IF p_durable AND current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'on', true);
  END IF;

  FOR i IN 1 .. n LOOP
    h := 15 * i;
    IF n > 1 THEN SELECT * INTO s FROM {schema}.states x WHERE x.number = v_numbers[i]; END IF;
    IF p_release AND p_leased = i THEN
      v_line := CASE WHEN s.line IS NULL THEN '[]' ELSE {schema}.waiting_{release}(s.line, v_now, 0) END;
      IF v_line = '[]' THEN
        s.nonce := 0;
      ELSE
        wake_nonce := (v_line#>>'{0,0}')::bigint;
        wake_channel := v_line#>>'{0,2}';
        s.nonce := wake_nonce; s.counter := s.counter + 1; s.since := v_now; s.until := v_now + 1;
        s.holder := v_line#>>'{0,3}';
        v_line := v_line - 0;
      END IF;
      s.line := nullif(v_line, '[]');
    END IF;
    IF p_numbers[h + 6] & 64 = 64 THEN
      DELETE FROM {schema}.states x WHERE x.number = s.number AND x.number = ANY (v_made);
      UPDATE {schema}.states x SET nonce = s.nonce, counter = s.counter, since = s.since, until = s.until,
        holder = s.holder, line = s.line
      WHERE p_leased = i AND x.number = s.number;
      versions := versions || CASE WHEN v_lives[i] THEN s.version END; commits := commits || s.commit_id;
      births := births || s.birth;
      ends := ends || s.expires; touched := touched || '{}'::text;
      CONTINUE;
    END IF;

    v_fresh := NOT v_lives[i] OR p_numbers[h + 6] & 1 = 1;
    v_touched := '{}'; v_ranges := '{}'; v_removed := 0;
    IF v_fresh THEN
      IF p_numbers[h + 6] & 1 = 1 AND p_numbers[h - 5] = p_numbers[h + 10] AND p_numbers[h - 4] = p_numbers[h + 11]
          AND p_numbers[h - 3] = p_numbers[h + 12] THEN
        PERFORM {schema}.bury_{release}(s.number, v_now, p_commit, v_lives[i]);
        UPDATE {schema}.states x SET nonce = s.nonce, counter = s.counter, since = s.since, until = s.until,
          holder = s.holder, line = s.line
        WHERE x.number = s.number;
        versions := versions || NULL::bigint; commits := commits || p_commit; births := births || 0::bigint;
        ends := ends || NULL::double precision; touched := touched || '{}'::text;
        CONTINUE;
      END IF;
      IF s.birth <> 0 THEN PERFORM {schema}.wipe_{release}(s.number); END IF;
      s.birth := p_commit; s.created := coalesce(p_times[3 * i - 1], v_now); s.expires := NULL;
      s.gone := NULL; s.entry_bytes := 0;
      s.once_count := 0; s.sections := '{}'; s.logs := '{}'; s.owner := NULL; s.parent := NULL; s.labels := NULL;
    END IF;
    v_ver := greatest(s.version + 1, p_numbers[h + 15]);
    v_updated := coalesce(p_times[3 * i], v_now);
    v_logs := s.logs; v_sections := s.sections;
    v_stamp := jsonb_build_array(v_ver, p_commit);

    FOR j IN p_numbers[h - 7] + 1 .. p_numbers[h + 8] LOOP
      v_head := v_logs->l_log[j];
      CONTINUE WHEN v_head IS NULL;
      v_first := (v_head->>0)::bigint; v_last := (v_head->>1)::bigint; v_next := (v_head->>2)::bigint;
      v_size := (v_head->>3)::bigint;
      IF l_numbers[4 * j - 3] = 2 THEN
        v_from := l_numbers[4 * j - 2]; v_sum := l_numbers[4 * j - 2];
      ELSIF l_numbers[4 * j - 3] = 1 THEN
        v_from := v_first; v_sum := least(l_numbers[4 * j - 2] - 1, v_last);
      ELSE
        v_from := greatest(l_numbers[4 * j - 2], v_first); v_sum := v_last;
      END IF;
      CONTINUE WHEN v_from > v_sum;
      IF p_records[i] IS NOT NULL THEN
        INSERT INTO {schema}.removed
        SELECT s.number, v_ver, v_removed + (t.position - v_from)::integer, t.position, t.seq, t.expires, t.crc, t.mark,
          t.log, t.id, t.value
        FROM {schema}.items t
        WHERE t.scope = s.number AND t.log = l_log[j] AND t.position BETWEEN v_from AND v_sum::bigint;
        v_removed := v_removed + (v_sum - v_from)::integer + 1;
      END IF;
      IF l_numbers[4 * j - 3] = 2 THEN
        SELECT octet_length(t.value) INTO v_bytes FROM {schema}.items t
        WHERE t.scope = s.number AND t.log = l_log[j] AND t.position = v_from;
        UPDATE {schema}.items t
        SET value = l_value[j], crc = l_numbers[4 * j], mark = CASE t.mark WHEN 1 THEN 1 ELSE 0 END
        WHERE t.scope = s.number AND t.log = l_log[j] AND t.position = v_from;
        v_bytes := v_bytes - octet_length(l_value[j]);
      ELSE
        WITH gone AS (
          DELETE FROM {schema}.items t
          WHERE t.scope = s.number AND t.log = l_log[j] AND t.position BETWEEN v_from AND v_sum::bigint
          RETURNING octet_length(t.value) AS bytes
        )
        SELECT coalesce(sum(bytes), 0) INTO v_bytes FROM gone;
        IF l_numbers[4 * j - 3] = 1 THEN v_first := v_sum::bigint + 1; ELSE v_last := v_from - 1; END IF;
      END IF;
      v_head := jsonb_build_array(v_first, v_last, v_next, v_size - v_bytes, v_ver, p_commit);
      v_logs := v_logs || jsonb_build_object(l_log[j], v_head);
      v_touched := v_touched || jsonb_build_object(l_log[j], v_head);
    END LOOP;

    FOR j IN p_numbers[h - 6] + 1 .. p_numbers[h + 9] LOOP
      DELETE FROM {schema}.entries e
      WHERE e.scope = s.number AND e.section = d_names[2 * j - 1] AND e.key = d_names[2 * j]
      RETURNING length(e.key) + CASE WHEN e.value IS NULL THEN 8 ELSE octet_length(e.value) END INTO v_bytes;
      IF FOUND THEN
        s.entry_bytes := s.entry_bytes - v_bytes;
        v_sections := v_sections || jsonb_build_object(d_names[2 * j - 1], v_stamp);
      END IF;
    END LOOP;
    FOR j IN p_numbers[h - 5] + 1 .. p_numbers[h + 10] LOOP
      -- What RETURNING selects from the table is as it was before the statement.
      INSERT INTO {schema}.entries(scope, section, key, version, commit_id, expires, crc, value)
      VALUES (s.number, p_names[2 * j - 1], p_names[2 * j], v_ver, p_commit, v_now + p_ttl[j], p_crc[j], p_value[j])
      ON CONFLICT (scope, section, key) DO UPDATE SET version = v_ver, commit_id = p_commit, counter = NULL,
        expires = excluded.expires, crc = excluded.crc, value = excluded.value
      RETURNING (
        SELECT length(o.key) + CASE WHEN o.value IS NULL THEN 8 ELSE octet_length(o.value) END FROM {schema}.entries o
        WHERE o.scope = s.number AND o.section = p_names[2 * j - 1] AND o.key = p_names[2 * j]
      ) INTO v_bytes;
      s.entry_bytes := s.entry_bytes + length(p_names[2 * j]) + octet_length(p_value[j]) - coalesce(v_bytes, 0);
      IF p_names[2 * j - 1] IS DISTINCT FROM v_log THEN
        v_log := p_names[2 * j - 1];
        v_sections := v_sections || jsonb_build_object(v_log, v_stamp);
      END IF;
    END LOOP;
    v_log := NULL;
    FOR j IN p_numbers[h - 4] + 1 .. p_numbers[h + 11] LOOP
      INSERT INTO {schema}.entries(scope, section, key, version, commit_id, counter, crc)
      VALUES (s.number, i_names[2 * j - 1], i_names[2 * j], v_ver, p_commit, sums[j], 0)
      ON CONFLICT (scope, section, key) DO UPDATE SET version = v_ver, commit_id = p_commit, counter = sums[j],
        expires = CASE WHEN {schema}.entries.expires > v_now THEN {schema}.entries.expires END, crc = 0, value = NULL
      RETURNING (
        SELECT length(o.key) + CASE WHEN o.value IS NULL THEN 8 ELSE octet_length(o.value) END FROM {schema}.entries o
        WHERE o.scope = s.number AND o.section = i_names[2 * j - 1] AND o.key = i_names[2 * j]
      ) INTO v_bytes;
      s.entry_bytes := s.entry_bytes + length(i_names[2 * j]) + 8 - coalesce(v_bytes, 0);
      v_sections := v_sections || jsonb_build_object(i_names[2 * j - 1], v_stamp);
    END LOOP;

    FOR j IN p_numbers[h - 3] + 1 .. p_numbers[h + 12] LOOP
      IF a_names[2 * j - 1] IS DISTINCT FROM v_log THEN
        v_log := a_names[2 * j - 1];
        v_head := v_logs->v_log;
        IF v_head IS NULL THEN
          v_first := coalesce((p_texts[7 * i]::jsonb->>v_log)::bigint, 1);
          v_head := jsonb_build_array(v_first, v_first - 1, v_first, 0, v_ver, p_commit);
        END IF;
        v_first := (v_head->>0)::bigint; v_last := (v_head->>1)::bigint; v_next := (v_head->>2)::bigint;
        v_size := (v_head->>3)::bigint; v_from := v_next;
      END IF;
      INSERT INTO {schema}.items(scope, position, seq, expires, crc, mark, log, id, value)
      VALUES (s.number, v_last + 1, v_next, v_now + a_ttl[j], a_numbers[2 * j], a_numbers[2 * j - 1],
        v_log, a_names[2 * j], a_value[j])
      ON CONFLICT (scope, log, id) WHERE mark = 1 DO NOTHING;
      IF FOUND THEN
        v_last := v_last + 1; v_next := v_next + 1; v_size := v_size + octet_length(a_value[j]);
      END IF;
      IF v_next > v_from AND (j = p_numbers[h + 12] OR a_names[2 * j + 1] <> v_log) THEN
        v_head := jsonb_build_array(v_first, v_last, v_next, v_size, v_ver, p_commit);
        v_logs := v_logs || jsonb_build_object(v_log, v_head);
        v_touched := v_touched || jsonb_build_object(v_log, v_head);
        v_ranges := v_ranges || jsonb_build_object(v_log, jsonb_build_array(v_from, v_next - 1));
      END IF;
    END LOOP;
    v_log := NULL;

    IF p_numbers[h + 6] & 2 = 2 THEN s.owner := p_texts[7 * i - 3]; END IF;
    IF p_numbers[h + 6] & 4 = 4 THEN s.parent := p_texts[7 * i - 2]; END IF;
    IF p_numbers[h + 6] & 16 = 16 AND (p_times[3 * i - 2] IS NULL OR v_fresh OR p_numbers[h + 6] & 32 = 32) THEN
      s.expires := v_now + p_times[3 * i - 2];
    END IF;
    IF p_numbers[h + 6] & 8 = 8 THEN
      DELETE FROM {schema}.labels b WHERE b.scope = s.number;
      INSERT INTO {schema}.labels SELECT s.number, s.tenant, one, s.kind, s.id, v_updated
      FROM unnest(b_label[p_numbers[h - 2] + 1 : p_numbers[h + 13]]) one;
      s.labels := p_texts[7 * i - 1]::jsonb;
    ELSIF s.labels IS NOT NULL THEN
      UPDATE {schema}.labels b SET updated = v_updated WHERE b.scope = s.number;
    END IF;
    IF p_once_part = i THEN
      s.once_count := s.once_count + 1;
      INSERT INTO {schema}.once VALUES
        (s.number, s.once_count, p_commit, v_now, p_once_crc, p_once, p_fingerprint, p_result)
      ON CONFLICT (scope, key) DO UPDATE SET number = excluded.number, commit_id = excluded.commit_id,
        at = excluded.at, crc = excluded.crc, fingerprint = excluded.fingerprint, result = excluded.result;
      DELETE FROM {schema}.once o WHERE o.scope = s.number
        AND o.number IN (SELECT y.number FROM {schema}.once y WHERE y.scope = s.number ORDER BY y.number LIMIT 4)
        AND (o.number <= s.once_count - 1000 OR o.at <= v_now - 86400);
    END IF;

    UPDATE {schema}.states x SET version = v_ver, commit_id = p_commit, birth = s.birth, created = s.created,
      updated = v_updated, expires = s.expires, gone = NULL, entry_bytes = s.entry_bytes, once_count = s.once_count,
      xid = v_xid, nonce = s.nonce, counter = s.counter, since = s.since, until = s.until, holder = s.holder,
      line = s.line, sections = v_sections, logs = v_logs, owner = s.owner, parent = s.parent, labels = s.labels
    WHERE x.number = s.number;
    INSERT INTO {schema}.journal(partition, dropped, crc, xid, scope, version, commit_id, at, ranges, record)
    VALUES (s.partition, false, coalesce(p_numbers[h + 14], 0), v_xid, s.number, v_ver, p_commit, v_now,
      CASE WHEN p_records[i] IS NULL THEN NULL ELSE nullif(v_ranges, '{}') END, p_records[i]);
    IF v_ver % 32 = 0 AND v_ver > 1000 THEN
      DELETE FROM {schema}.removed x WHERE x.scope = s.number AND x.version <= v_ver - 1000;
      DELETE FROM {schema}.journal x WHERE x.scope = s.number AND x.version <= v_ver - 1000;
    END IF;
    versions := versions || v_ver; commits := commits || p_commit; births := births || s.birth;
    ends := ends || s.expires;
    touched := touched || v_touched::text;
  END LOOP;
END $body$;
