-- Looking without a turn. Each is one statement, so it sees one moment.

CREATE OR REPLACE FUNCTION {schema}.log_{release}(
  p_now double precision, p_tenant text, p_kind text, p_id text, p_log text,
  p_start bigint, p_end bigint, p_limit bigint,
  OUT head text, OUT t_seq bigint[], OUT t_position bigint[], OUT t_id text[], OUT t_value bytea[],
  OUT t_expires double precision[], OUT t_crc integer[], OUT low bigint, OUT high bigint
) LANGUAGE sql STABLE AS $body$
  SELECT (x.logs->p_log)::text, t.*, b.low, b.high
  FROM {schema}.states x
  CROSS JOIN LATERAL (
    SELECT greatest(coalesce(p_start, (x.logs->p_log->>0)::bigint), (x.logs->p_log->>0)::bigint) AS low,
      least(coalesce(p_end, (x.logs->p_log->>1)::bigint + 1), (x.logs->p_log->>1)::bigint + 1) AS high
  ) a
  CROSS JOIN LATERAL (
    SELECT
      CASE WHEN p_limit IS NULL OR p_start IS NOT NULL THEN a.low ELSE greatest(a.low, a.high - p_limit) END AS low,
      CASE WHEN p_limit IS NULL OR p_start IS NULL THEN a.high ELSE least(a.high, a.low + p_limit) END AS high
  ) b
  LEFT JOIN LATERAL (
    SELECT array_agg(y.seq), array_agg(y.position), array_agg(y.id), array_agg(y.value), array_agg(y.expires),
      array_agg(y.crc)
    FROM (
      SELECT i.* FROM {schema}.items i
      WHERE i.scope = x.number AND i.log = p_log AND i.position >= b.low AND i.position < b.high ORDER BY i.position
    ) y
  ) t ON true
  WHERE x.tenant = p_tenant AND x.kind = p_kind AND x.id = p_id AND x.birth <> 0 AND x.logs ? p_log
    AND (x.expires IS NULL OR x.expires > coalesce(p_now, extract(epoch FROM clock_timestamp())))
$body$;

-- A page of the feed: what was committed by transactions older than every one that still runs, in their order.
-- `more` says that younger ones have committed, too.
CREATE OR REPLACE FUNCTION {schema}.feed_{release}(
  p_partition integer, p_xid bigint, p_scope bigint, p_limit bigint,
  OUT f_xid bigint[], OUT f_scope bigint[], OUT f_tenant text[], OUT f_kind text[], OUT f_id text[],
  OUT f_version bigint[], OUT f_commit bigint[], OUT f_at double precision[], OUT more boolean
) LANGUAGE sql STABLE AS $body$
  WITH old AS (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin)
  SELECT array_agg(y.xid), array_agg(y.scope), array_agg(y.tenant), array_agg(y.kind), array_agg(y.id),
    array_agg(y.version), array_agg(CASE WHEN y.dropped THEN NULL ELSE y.commit_id END), array_agg(y.at),
    EXISTS (SELECT FROM {schema}.journal j WHERE j.partition = p_partition AND j.xid >= (SELECT xmin FROM old))
  FROM (
    SELECT j.*, s.tenant, s.kind, s.id FROM {schema}.journal j JOIN {schema}.states s ON s.number = j.scope
    WHERE j.partition = p_partition AND (j.xid, j.scope) > (p_xid, p_scope) AND j.xid < (SELECT xmin FROM old)
    ORDER BY j.xid, j.scope LIMIT p_limit
  ) y
$body$;
