-- An author's database, `m-<node>.db`: what one node says, for all to read.

CREATE TABLE owner (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    node TEXT NOT NULL,
    -- Drawn by the author's `local.db`: who has another one is another process, or has lost its disk.
    instance TEXT NOT NULL
) STRICT;

CREATE TABLE entry (
    kind INTEGER NOT NULL,
    key BLOB NOT NULL,
    stamp INTEGER NOT NULL,
    -- The stamp of its publication: readers go on behind the last one that they have.
    published INTEGER NOT NULL,
    -- JSON; NULL is a tombstone.
    value TEXT,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX entry_published ON entry (published);
