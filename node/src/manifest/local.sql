-- `local.db`: what this node says itself, and what it has read of the others.

CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
-- `claimed`: the author's database has borne our instance.
INSERT INTO meta VALUES
    ('instance', lower(hex(randomblob(16)))), ('claimed', '0'), ('purges', '0'), ('purges_removed', '0');

-- Own rows: the truth. `published` is 0 in the outbox, and -1 where the row is to leave the author's database.
CREATE TABLE own (
    kind INTEGER NOT NULL,
    key BLOB NOT NULL,
    stamp INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    value TEXT,
    published INTEGER NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX own_outbox ON own (stamp) WHERE published <= 0;
CREATE INDEX own_wanted ON own (priority, stamp) WHERE kind = 1 AND value IS NOT NULL AND published >= 0;
CREATE INDEX own_tombstone ON own (stamp) WHERE value IS NULL AND published > 0;

-- How far each author's database has been read.
CREATE TABLE author (
    name TEXT PRIMARY KEY,
    instance TEXT NOT NULL,
    published INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The merge: for each key the row with the latest (stamp, author). Tombstones (value NULL) are kept.
CREATE TABLE entry (
    kind INTEGER NOT NULL,
    key BLOB NOT NULL,
    stamp INTEGER NOT NULL,
    author TEXT NOT NULL,
    value TEXT,
    -- Of live resources: what to list them by, and what joins them to the store's index.
    url TEXT,
    cache_key BLOB,
    variant INTEGER,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX entry_url ON entry (url, key) WHERE url IS NOT NULL;

CREATE TABLE resource_tag (
    tag TEXT NOT NULL,
    key BLOB NOT NULL,
    PRIMARY KEY (tag, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX resource_tag_key ON resource_tag (key);

-- Purges in the order in which they came to this node.
CREATE TABLE purge (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    key BLOB NOT NULL UNIQUE
) STRICT;
