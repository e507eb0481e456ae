  OUT version bigint, OUT commit_id bigint, OUT birth bigint, OUT created double precision,
  OUT updated double precision, OUT expires double precision, OUT entry_bytes bigint,
  OUT owner text, OUT parent text, OUT labels text, OUT sections text, OUT logs text,
  OUT e_section text[], OUT e_key text[], OUT e_value bytea[], OUT e_counter bigint[], OUT e_version bigint[],
  OUT e_commit bigint[], OUT e_expires double precision[], OUT e_crc integer[],
  OUT t_log text[], OUT t_seq bigint[], OUT t_position bigint[], OUT t_id text[], OUT t_value bytea[],
  OUT t_expires double precision[], OUT t_crc integer[],
  OUT o_fingerprint text, OUT o_commit bigint, OUT o_result bytea, OUT o_at double precision, OUT o_crc integer
