  IF birth = 0 OR expires <= now THEN
    version := NULL;
    RETURN;
  END IF;
  IF entry_bytes <= p_inline AND sections <> '{}' THEN
    SELECT array_agg(e.section), array_agg(e.key), array_agg(e.value), array_agg(e.counter), array_agg(e.version),
      array_agg(e.commit_id), array_agg(e.expires), array_agg(e.crc)
    INTO e_section, e_key, e_value, e_counter, e_version, e_commit, e_expires, e_crc
    FROM {schema}.entries e
    WHERE e.scope = v_number AND (p_sections IS NULL OR e.section = ANY (p_sections));
  END IF;
  IF cardinality(p_keys) > 0 AND (entry_bytes > p_inline OR p_sections IS NOT NULL) THEN
    SELECT e_section || array_agg(e.section), e_key || array_agg(e.key), e_value || array_agg(e.value),
      e_counter || array_agg(e.counter), e_version || array_agg(e.version), e_commit || array_agg(e.commit_id),
      e_expires || array_agg(e.expires), e_crc || array_agg(e.crc)
    INTO e_section, e_key, e_value, e_counter, e_version, e_commit, e_expires, e_crc
    FROM unnest(p_key_sections, p_keys) w(section, key)
    JOIN {schema}.entries e ON e.scope = v_number AND e.section = w.section AND e.key = w.key;
  END IF;
  FOR i IN 1 .. cardinality(p_logs) LOOP
    v_head := (logs::jsonb->p_logs[i]->>1)::bigint;
    CONTINUE WHEN v_head IS NULL OR p_tails[i] <= 0;
    SELECT t_log || array_agg(p_logs[i]), t_seq || array_agg(y.seq), t_position || array_agg(y.position),
      t_id || array_agg(y.id), t_value || array_agg(y.value), t_expires || array_agg(y.expires),
      t_crc || array_agg(y.crc)
    INTO t_log, t_seq, t_position, t_id, t_value, t_expires, t_crc
    FROM (
      SELECT x.* FROM {schema}.items x
      WHERE x.scope = v_number AND x.log = p_logs[i] AND x.position > v_head - p_tails[i] ORDER BY x.position
    ) y;
  END LOOP;
  IF p_once IS NOT NULL THEN
    SELECT o.fingerprint, o.commit_id, o.result, o.at, o.crc INTO o_fingerprint, o_commit, o_result, o_at, o_crc
    FROM {schema}.once o WHERE o.scope = v_number AND o.key = p_once AND o.at > now - 86400;
  END IF;
