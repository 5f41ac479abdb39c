-- Two sites: who writes, whom we know, what was set aside; and records that are no meter's.

-- A session's limits are those of commits; here all rows are looked at once.
SET LOCAL statement_timeout = 0;

UPDATE schema_version SET version = 4;

-- One row, which each commit looks at: the highest epoch that this site knows of, and whether it writes in
-- it. A copy of what `role_records` say. A site that stands already begins as it was founded.
CREATE TABLE role (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch  bigint  NOT NULL,
    writes boolean NOT NULL
);
INSERT INTO role (epoch, writes) SELECT epoch, (epoch % 2 = 0) = even FROM domain;

-- Promotions (1) and demotions (2), as the sites' tokens signed them: `kms_core::site::role`. Never changed.
CREATE TABLE role_records (
    epoch     bigint NOT NULL,
    change    bigint NOT NULL CHECK (change IN (1, 2)),
    body      bytea  NOT NULL,
    signature bytea  NOT NULL CHECK (length(signature) = 64),
    PRIMARY KEY (epoch, change)
);
ALTER TABLE role_records ALTER COLUMN body SET STORAGE EXTERNAL;

-- The other sites, as our token signed them when they were enrolled: `kms_core::site::peer`.
CREATE TABLE peers (
    site      text  COLLATE "C" PRIMARY KEY,
    body      bytea NOT NULL,
    signature bytea NOT NULL CHECK (length(signature) = 64)
);

-- Records that one site wrote and the other never had, when the other was promoted. Never deleted;
-- `resolution` is what people decided, once.
CREATE TABLE divergence (
    block          bigint NOT NULL,
    key            bytea  NOT NULL CHECK (length(key) BETWEEN 1 AND 32),
    epoch          bigint NOT NULL,
    sequence       bigint NOT NULL,
    secret_version bigint NOT NULL,
    mac            bytea  NOT NULL CHECK (length(mac) = 16),
    body           bytea  NOT NULL,
    site           text   NOT NULL,
    at_ms          bigint NOT NULL,
    resolution     bigint,
    PRIMARY KEY (block, key, epoch, sequence)
);

-- Keys of other lengths than a meter's.
ALTER TABLE records
    DROP CONSTRAINT records_key_check,
    ADD CONSTRAINT records_key_check CHECK (length(key) BETWEEN 1 AND 32);

-- That an id is one meter's is a rule of the site that writes. What was adopted from a peer comes block by
-- block, in any order: there two meters may have one id for a while. Each row is in one of the two indexes.
ALTER TABLE meters
    DROP CONSTRAINT meters_meter_id_key,
    ADD COLUMN adopted boolean NOT NULL DEFAULT false;
CREATE UNIQUE INDEX meters_written ON meters (meter_id) WHERE NOT adopted;
CREATE INDEX meters_adopted ON meters (meter_id) WHERE adopted;
