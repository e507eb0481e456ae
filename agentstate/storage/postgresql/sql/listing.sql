-- One page of states: for each kind a walk along the index that has the wanted order. The statement is put
-- together from fixed pieces; every value is an argument of it.
CREATE OR REPLACE FUNCTION {schema}.page_{release}(
  p_now double precision, p_tenant text, p_kinds text[], p_low text, p_high text, p_owner text, p_label bytea,
  p_before double precision, p_after double precision, p_by_update boolean, p_reverse boolean,
  p_cursor_updated double precision, p_cursor_kind text, p_cursor_id text, p_limit bigint
) RETURNS TABLE (
  kind text, id text, version bigint, commit_id bigint, owner text, created double precision, updated double precision,
  expires double precision, labels text, entry_bytes bigint, logs text
) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $body$
#variable_conflict use_column
DECLARE
  t CONSTANT text := CASE WHEN p_label IS NULL THEN 's' ELSE 'l' END;
  v_down CONSTANT text := CASE WHEN p_reverse THEN ' DESC' ELSE '' END;
  v_behind CONSTANT text := CASE WHEN p_reverse THEN ' < ' ELSE ' > ' END;
  v_now CONSTANT double precision := coalesce(p_now, extract(epoch FROM clock_timestamp()));
  v_kind text;
  v_where text;
  v_more text;
  v_count integer;
  v_found integer := 0;
BEGIN
  v_where := t || '.tenant = $1 AND ' || t || '.kind = $2 AND (s.expires IS NULL OR s.expires > $3)'
    || CASE WHEN p_label IS NULL THEN '' ELSE ' AND l.label = $4' END
    -- An absent state has neither label nor owner: without the condition only the owners' indexes serve.
    || CASE WHEN p_label IS NULL AND p_owner IS NULL THEN ' AND s.birth <> 0' ELSE '' END
    || CASE WHEN p_owner IS NULL THEN '' ELSE ' AND s.owner = $5' END
    || CASE WHEN p_low IS NULL THEN '' ELSE ' AND ' || t || '.id >= $6' END
    || CASE WHEN p_high IS NULL THEN '' ELSE ' AND ' || t || '.id < $7' END
    || CASE WHEN p_before IS NULL THEN '' ELSE ' AND ' || t || '.updated < $8' END
    || CASE WHEN p_after IS NULL THEN '' ELSE ' AND ' || t || '.updated > $9' END;
  FOREACH v_kind IN ARRAY p_kinds LOOP
    v_more := CASE
      WHEN p_cursor_kind IS NULL THEN ''
      WHEN NOT p_by_update AND v_kind = p_cursor_kind THEN ' AND ' || t || '.id' || v_behind || '$11'
      WHEN NOT p_by_update THEN ''
      WHEN v_kind = p_cursor_kind THEN ' AND (' || t || '.updated, ' || t || '.id)' || v_behind || '($10, $11)'
      WHEN (v_kind COLLATE "C" < p_cursor_kind) <> p_reverse THEN ' AND ' || t || '.updated' || v_behind || '$10'
      ELSE ' AND ' || t || '.updated' || rtrim(v_behind) || '= $10' END;
    RETURN QUERY EXECUTE
      'SELECT s.kind, s.id, s.version, s.commit_id, s.owner, s.created, s.updated, s.expires, s.labels::text, '
      's.entry_bytes, s.logs::text FROM '
      || CASE WHEN p_label IS NULL THEN '{schema_in_text}.states s'
         ELSE '{schema_in_text}.labels l JOIN {schema_in_text}.states s ON s.number = l.scope' END
      || ' WHERE ' || v_where || v_more || ' ORDER BY '
      || CASE WHEN p_by_update THEN t || '.updated' || v_down || ', ' ELSE '' END || t || '.id' || v_down
      || ' LIMIT $12'
      USING p_tenant, v_kind, v_now, p_label, p_owner, p_low, p_high, p_before, p_after, p_cursor_updated, p_cursor_id,
        p_limit;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_found := v_found + v_count;
    EXIT WHEN NOT p_by_update AND v_found >= p_limit;
  END LOOP;
END $body$;
