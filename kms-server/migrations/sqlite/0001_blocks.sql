-- Key blocks, their records, and the indexes that find a meter.
--
-- Numbers of 64 bits are kept as signed ones; `store::rules` refuses what would not fit.

PRAGMA application_id = 0x414D494B; -- "AMIK": this file is ours
PRAGMA user_version = 1;

-- One row: the key domain and this site's place in it.
CREATE TABLE domain (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    domain     BLOB    NOT NULL CHECK (length(domain) = 16),
    blocks     INTEGER NOT NULL,
    site       TEXT    NOT NULL,
    epoch      INTEGER NOT NULL,
    even       INTEGER NOT NULL CHECK (even IN (0, 1)),
    canaries   BLOB    NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

-- Heads.
CREATE TABLE blocks (
    block          INTEGER PRIMARY KEY,
    secret_version INTEGER NOT NULL,
    epoch          INTEGER NOT NULL,
    sequence       INTEGER NOT NULL,
    count          INTEGER NOT NULL,
    digest         BLOB    NOT NULL CHECK (length(digest) = 32),
    mac            BLOB    NOT NULL CHECK (length(mac) = 16)
) STRICT;

-- Block secrets, one seal for each token that may open them. A seal is never overwritten: with the
-- last one of a version all of the block's keys are lost.
CREATE TABLE block_seals (
    block          INTEGER NOT NULL REFERENCES blocks (block),
    secret_version INTEGER NOT NULL,
    kek_id         BLOB    NOT NULL CHECK (length(kek_id) = 16),
    sealed         BLOB    NOT NULL,
    PRIMARY KEY (block, secret_version, kek_id)
) STRICT, WITHOUT ROWID;

-- Clustered: the records of a block lie side by side, in key order, so a block is one range scan.
CREATE TABLE records (
    block          INTEGER NOT NULL REFERENCES blocks (block),
    key            BLOB    NOT NULL CHECK (length(key) = 9),
    epoch          INTEGER NOT NULL,
    sequence       INTEGER NOT NULL,
    secret_version INTEGER NOT NULL,
    mac            BLOB    NOT NULL CHECK (length(mac) = 16),
    body           BLOB    NOT NULL,
    PRIMARY KEY (block, key)
) STRICT, WITHOUT ROWID;

-- The living meters. `fingerprints` repeats what `key_fingerprints` has of this meter, 16 bytes each,
-- so that a change finds the entries to remove without an index the other way round.
CREATE TABLE meters (
    system_title BLOB    NOT NULL PRIMARY KEY CHECK (length(system_title) = 8),
    meter_id     TEXT    NOT NULL UNIQUE,
    block        INTEGER NOT NULL REFERENCES blocks (block),
    fingerprints BLOB    NOT NULL CHECK (length(fingerprints) % 16 = 0)
) STRICT, WITHOUT ROWID;

-- Which living meters have a key of this value.
CREATE TABLE key_fingerprints (
    fingerprint  BLOB NOT NULL CHECK (length(fingerprint) = 16),
    system_title BLOB NOT NULL,
    PRIMARY KEY (fingerprint, system_title)
) STRICT, WITHOUT ROWID;
