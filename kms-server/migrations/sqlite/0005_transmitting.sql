-- Counters, what a site knows of its peer, and what is kept of both.

PRAGMA user_version = 5;

-- Reservations of transmit counters: all sequences of the block below `reserved` may have been used in this epoch.
-- MACed under the block's `local` key, which names the site: `kms_core::counters::mark`. Never lowered.
CREATE TABLE counter_marks (
    block          INTEGER NOT NULL PRIMARY KEY,
    epoch          INTEGER NOT NULL,
    reserved       INTEGER NOT NULL,
    holder         BLOB    CHECK (length(holder) = 16),
    term           INTEGER NOT NULL,
    secret_version INTEGER NOT NULL,
    mac            BLOB    NOT NULL CHECK (length(mac) = 16)
) STRICT, WITHOUT ROWID;

-- What other sites told of theirs, for them to ask after: merged by maximum.
CREATE TABLE witnessed_marks (
    site     TEXT    NOT NULL,
    block    INTEGER NOT NULL,
    epoch    INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    PRIMARY KEY (site, block)
) STRICT, WITHOUT ROWID;
