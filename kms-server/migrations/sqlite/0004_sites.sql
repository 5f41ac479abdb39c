-- Two sites: who writes, whom we know, what was set aside; and records that are no meter's.

PRAGMA user_version = 4;

-- One row, which each commit looks at: the highest epoch that this site knows of, and whether it writes in
-- it. A copy of what `role_records` say. A site that stands already begins as it was founded.
CREATE TABLE role (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    epoch  INTEGER NOT NULL,
    writes INTEGER NOT NULL CHECK (writes IN (0, 1))
) STRICT;
INSERT INTO role (one, epoch, writes) SELECT 1, epoch, epoch % 2 = 1 - even FROM domain;

-- Promotions (1) and demotions (2), as the sites' tokens signed them: `kms_core::site::role`. Never changed.
CREATE TABLE role_records (
    epoch     INTEGER NOT NULL,
    change    INTEGER NOT NULL CHECK (change IN (1, 2)),
    body      BLOB    NOT NULL,
    signature BLOB    NOT NULL CHECK (length(signature) = 64),
    PRIMARY KEY (epoch, change)
) STRICT;

-- The other sites, as our token signed them when they were enrolled: `kms_core::site::peer`.
CREATE TABLE peers (
    site      TEXT NOT NULL PRIMARY KEY,
    body      BLOB NOT NULL,
    signature BLOB NOT NULL CHECK (length(signature) = 64)
) STRICT;

-- Records that one site wrote and the other never had, when the other was promoted. Never deleted;
-- `resolution` is what people decided, once.
CREATE TABLE divergence (
    block          INTEGER NOT NULL,
    key            BLOB    NOT NULL CHECK (length(key) BETWEEN 1 AND 32),
    epoch          INTEGER NOT NULL,
    sequence       INTEGER NOT NULL,
    secret_version INTEGER NOT NULL,
    mac            BLOB    NOT NULL CHECK (length(mac) = 16),
    body           BLOB    NOT NULL,
    site           TEXT    NOT NULL,
    at_ms          INTEGER NOT NULL,
    resolution     INTEGER,
    PRIMARY KEY (block, key, epoch, sequence)
) STRICT, WITHOUT ROWID;

-- Keys of other lengths than a meter's. SQLite can't change a CHECK: the rows go over as they are.
CREATE TABLE records_of_any_kind (
    block          INTEGER NOT NULL REFERENCES blocks (block),
    key            BLOB    NOT NULL CHECK (length(key) BETWEEN 1 AND 32),
    epoch          INTEGER NOT NULL,
    sequence       INTEGER NOT NULL,
    secret_version INTEGER NOT NULL,
    mac            BLOB    NOT NULL CHECK (length(mac) = 16),
    body           BLOB    NOT NULL,
    PRIMARY KEY (block, key)
) STRICT, WITHOUT ROWID;
INSERT INTO records_of_any_kind (block, key, epoch, sequence, secret_version, mac, body)
    SELECT block, key, epoch, sequence, secret_version, mac, body FROM records ORDER BY block, key;
DROP TABLE records;
ALTER TABLE records_of_any_kind RENAME TO records;

-- That an id is one meter's is a rule of the site that writes. What was adopted from a peer comes block by
-- block, in any order: there two meters may have one id for a while. Each row is in one of the two indexes.
CREATE TABLE meters_of_both (
    system_title BLOB    NOT NULL PRIMARY KEY CHECK (length(system_title) = 8),
    meter_id     TEXT    NOT NULL,
    block        INTEGER NOT NULL REFERENCES blocks (block),
    fingerprints BLOB    NOT NULL CHECK (length(fingerprints) % 16 = 0),
    adopted      INTEGER NOT NULL DEFAULT 0 CHECK (adopted IN (0, 1))
) STRICT, WITHOUT ROWID;
INSERT INTO meters_of_both (system_title, meter_id, block, fingerprints)
    SELECT system_title, meter_id, block, fingerprints FROM meters ORDER BY system_title;
DROP TABLE meters;
ALTER TABLE meters_of_both RENAME TO meters;
CREATE UNIQUE INDEX meters_written ON meters (meter_id) WHERE adopted = 0;
CREATE INDEX meters_adopted ON meters (meter_id) WHERE adopted = 1;
