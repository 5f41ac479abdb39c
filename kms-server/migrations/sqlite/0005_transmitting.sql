-- Counters, what a site knows of its peer, and what is kept of both.

PRAGMA user_version = 5;

-- What was set aside, named by its MAC too: a site that was rolled back may write two records at one place. Who decided,
-- and when. SQLite can't change a primary key: the rows go over as they are.
CREATE TABLE divergence_by_mac (
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
    decided_ms     INTEGER,
    decided_by     TEXT,
    PRIMARY KEY (block, key, epoch, sequence, mac)
) STRICT, WITHOUT ROWID;
INSERT INTO divergence_by_mac
    (block, key, epoch, sequence, secret_version, mac, body, site, at_ms, resolution)
    SELECT block, key, epoch, sequence, secret_version, mac, body, site, at_ms, resolution FROM divergence;
DROP TABLE divergence;
ALTER TABLE divergence_by_mac RENAME TO divergence;
CREATE INDEX divergence_undecided ON divergence (block) WHERE resolution IS NULL;
