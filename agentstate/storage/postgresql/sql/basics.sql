-- Small functions that the others call, and the views for people.

-- Returns a plain JSON value as jsonb; NULL for what is compressed, sealed or no JSON.
CREATE OR REPLACE FUNCTION {schema}.json_{release}(p_value bytea) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
BEGIN
  RETURN convert_from(p_value, 'UTF8')::jsonb;
EXCEPTION WHEN data_exception THEN
  RETURN NULL;
END $body$;

CREATE OR REPLACE VIEW {schema}.states_view AS
SELECT number AS scope, tenant, kind, id, version, owner, parent, labels, entry_bytes, logs,
    to_timestamp(created) AS created_at, to_timestamp(updated) AS updated_at, to_timestamp(expires) AS expires_at
FROM {schema}.states
WHERE birth <> 0 AND (expires IS NULL OR expires > extract(epoch FROM clock_timestamp()));

CREATE OR REPLACE VIEW {schema}.entries_view AS
SELECT s.tenant, s.kind, s.id, s.owner, e.section, e.key,
    coalesce(to_jsonb(e.counter), {schema}.json_{release}(e.value)) AS value, e.version
FROM {schema}.states_view s JOIN {schema}.entries e USING (scope)
WHERE e.expires IS NULL OR e.expires > extract(epoch FROM clock_timestamp());

CREATE OR REPLACE VIEW {schema}.messages_view AS
SELECT s.tenant, s.kind, s.id, s.owner, i.log, i.position, {schema}.json_{release}(i.value) AS message
FROM {schema}.states_view s JOIN {schema}.items i USING (scope)
WHERE i.mark < 2 AND (i.expires IS NULL OR i.expires > extract(epoch FROM clock_timestamp()));

CREATE OR REPLACE VIEW {schema}.journal_view AS
SELECT s.tenant, s.kind, s.id, j.version, to_timestamp(j.at) AS at, j.dropped,
    {schema}.json_{release}(j.record) AS record
FROM {schema}.journal j JOIN {schema}.states s ON s.number = j.scope;

-- Returns who still waits for a turn; who hasn't been seen for a second has gone. `p_asker` is here now.
CREATE OR REPLACE FUNCTION {schema}.waiting_{release}(p_line jsonb, p_now double precision, p_asker bigint)
RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $body$
  SELECT coalesce(jsonb_agg(
    CASE WHEN (one->>0)::bigint = p_asker THEN jsonb_set(one, '{1}', to_jsonb(p_now)) ELSE one END ORDER BY place
  ), '[]')
  FROM jsonb_array_elements(p_line) WITH ORDINALITY AS found(one, place)
  WHERE (one->>0)::bigint = p_asker OR (one->>1)::double precision + 1 > p_now
$body$;

-- Removes all that belongs to an incarnation of a state, but for its row and its place in the feed.
CREATE OR REPLACE FUNCTION {schema}.wipe_{release}(p_scope bigint) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $body$
BEGIN
  DELETE FROM {schema}.entries WHERE scope = p_scope;
  DELETE FROM {schema}.items WHERE scope = p_scope;
  DELETE FROM {schema}.once WHERE scope = p_scope;
  DELETE FROM {schema}.labels WHERE scope = p_scope;
  DELETE FROM {schema}.removed WHERE scope = p_scope;
  UPDATE {schema}.journal SET record = NULL, ranges = NULL WHERE scope = p_scope AND record IS NOT NULL;
END $body$;

-- Makes a state absent. Its row stays for seven days, so that neither its version nor its feed begins anew.
CREATE OR REPLACE FUNCTION {schema}.bury_{release}(
  p_scope bigint, p_now double precision, p_commit bigint, p_told boolean
)
RETURNS void LANGUAGE plpgsql SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $body$
DECLARE
  v_xid bigint := pg_current_xact_id()::text::bigint;
BEGIN
  PERFORM {schema}.wipe_{release}(p_scope);
  IF p_told THEN
    INSERT INTO {schema}.journal(partition, dropped, crc, xid, scope, version, commit_id, at)
    SELECT partition, true, 0, v_xid, number, version, p_commit, p_now FROM {schema}.states WHERE number = p_scope;
  END IF;
  DELETE FROM {schema}.failures f USING {schema}.states s
  WHERE s.number = p_scope AND f.tenant = s.tenant AND f.kind = s.kind AND f.id = s.id;
  UPDATE {schema}.states SET birth = 0, created = 0, expires = NULL, gone = p_now + 604800, entry_bytes = 0,
    once_count = 0, sections = '{}', logs = '{}', owner = NULL, parent = NULL, labels = NULL,
    xid = CASE WHEN p_told THEN v_xid ELSE xid END
  WHERE number = p_scope;
END $body$;
