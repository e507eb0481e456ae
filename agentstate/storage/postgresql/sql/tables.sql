-- The tables of format 1. Text compares byte by byte; times are seconds since the epoch.

CREATE TABLE {schema}.meta (name text PRIMARY KEY, value text NOT NULL);

-- One row for each state, which every commit of it rewrites and which its reads with a turn lock.
-- `birth` is 0 while the state is absent: then the row keeps its version, and the turn, until `gone`.
-- `sections` is {name: [version, commit]}; `logs` is {name: [first, head, next seq, size, version, commit]}.
-- `line` is [[nonce, seen, channel, holder], ...]: who waits for the turn. `xid` is the last commit's transaction.
CREATE TABLE {schema}.states (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    partition smallint NOT NULL,
    version bigint NOT NULL DEFAULT 0,
    commit_id bigint NOT NULL DEFAULT 0,
    birth bigint NOT NULL DEFAULT 0,
    created double precision NOT NULL DEFAULT 0,
    updated double precision NOT NULL DEFAULT 0,
    expires double precision,
    gone double precision,
    entry_bytes bigint NOT NULL DEFAULT 0,
    once_count bigint NOT NULL DEFAULT 0,
    xid bigint NOT NULL DEFAULT 0,
    nonce bigint NOT NULL DEFAULT 0,
    counter bigint NOT NULL DEFAULT 0,
    since double precision NOT NULL DEFAULT 0,
    until double precision NOT NULL DEFAULT 0,
    holder text NOT NULL DEFAULT '',
    line jsonb,
    sections jsonb NOT NULL DEFAULT '{}',
    logs jsonb NOT NULL DEFAULT '{}',
    owner text COLLATE "C",
    parent text COLLATE "C",
    labels jsonb,
    CONSTRAINT states_by_address UNIQUE (tenant, kind, id)
) WITH (fillfactor = 70);
CREATE INDEX states_by_id ON {schema}.states (tenant, kind, id) WHERE birth <> 0;
CREATE INDEX states_by_update ON {schema}.states (tenant, kind, updated, id) WHERE birth <> 0;
CREATE INDEX states_by_owner ON {schema}.states (tenant, owner, kind, id) WHERE owner IS NOT NULL;
CREATE INDEX states_by_owner_update ON {schema}.states (tenant, owner, kind, updated, id) WHERE owner IS NOT NULL;
CREATE INDEX states_by_expiry ON {schema}.states (expires) WHERE expires IS NOT NULL;
CREATE INDEX states_gone ON {schema}.states (gone) WHERE gone IS NOT NULL;

-- `label` is the digest of a label's name and value.
CREATE TABLE {schema}.labels (
    scope bigint NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    label bytea NOT NULL,
    kind text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    updated double precision NOT NULL,
    PRIMARY KEY (scope, label)
);
CREATE INDEX labels_by_id ON {schema}.labels (tenant, label, kind, id);
CREATE INDEX labels_by_update ON {schema}.labels (tenant, label, kind, updated, id);

-- Either `value` or `counter`. `crc` covers section, key and value.
CREATE TABLE {schema}.entries (
    scope bigint NOT NULL,
    section text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    commit_id bigint NOT NULL,
    counter bigint,
    expires double precision,
    crc integer NOT NULL,
    value bytea,
    PRIMARY KEY (scope, section, key)
);
CREATE INDEX entries_by_expiry ON {schema}.entries (expires) WHERE expires IS NOT NULL;

-- `mark` is 1 for an item with a unique id, 2 for one that expired and holds nothing but its place.
CREATE TABLE {schema}.items (
    scope bigint NOT NULL,
    position bigint NOT NULL,
    seq bigint NOT NULL,
    expires double precision,
    crc integer NOT NULL,
    mark smallint NOT NULL,
    log text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (scope, log, position)
);
CREATE UNIQUE INDEX items_by_id ON {schema}.items (scope, log, id) WHERE mark = 1;
CREATE INDEX items_by_expiry ON {schema}.items (expires) WHERE expires IS NOT NULL AND mark < 2;

-- Every commit, in the order of its partition: the feed. Those with a `record` are the state's journal.
CREATE TABLE {schema}.journal (
    partition smallint NOT NULL,
    dropped boolean NOT NULL,
    crc integer NOT NULL,
    xid bigint NOT NULL,
    scope bigint NOT NULL,
    version bigint NOT NULL,
    commit_id bigint NOT NULL,
    at double precision NOT NULL,
    ranges jsonb,
    record bytea,
    PRIMARY KEY (partition, xid, scope)
);
CREATE INDEX journal_by_scope ON {schema}.journal (scope, version);

-- The items that a commit with a record cut, trimmed or edited, as they were.
CREATE TABLE {schema}.removed (
    scope bigint NOT NULL,
    version bigint NOT NULL,
    number integer NOT NULL,
    position bigint NOT NULL,
    seq bigint NOT NULL,
    expires double precision,
    crc integer NOT NULL,
    mark smallint NOT NULL,
    log text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (scope, version, number)
);

CREATE TABLE {schema}.once (
    scope bigint NOT NULL,
    number bigint NOT NULL,
    commit_id bigint NOT NULL,
    at double precision NOT NULL,
    crc integer NOT NULL,
    key text COLLATE "C" NOT NULL,
    fingerprint text NOT NULL,
    result bytea,
    PRIMARY KEY (scope, key)
);
CREATE INDEX once_by_number ON {schema}.once (scope, number);

CREATE TABLE {schema}.failures (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token bigint NOT NULL,
    at double precision NOT NULL,
    crc integer NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    record bytea NOT NULL
);
CREATE INDEX failures_by_address ON {schema}.failures (tenant, kind, id, number);

-- Commits that were sent a second time: what is left of the first sending must not be done any more.
CREATE TABLE {schema}.fences (commit_id bigint PRIMARY KEY, at double precision NOT NULL);
