-- Key blocks, their records, and the indexes that find a meter. Everything stands in the schema
-- `ami_kms`, which the program makes before this file runs.
--
-- Numbers of 64 bits are kept as signed ones; `store::rules` refuses what would not fit.

-- One row: the version of this schema.
CREATE TABLE schema_version (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint  NOT NULL
);
INSERT INTO schema_version (version) VALUES (1);

-- One row: the key domain and this site's place in it.
CREATE TABLE domain (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    domain     bytea   NOT NULL CHECK (length(domain) = 16),
    blocks     bigint  NOT NULL,
    site       text    NOT NULL,
    epoch      bigint  NOT NULL,
    even       boolean NOT NULL,
    canaries   bytea   NOT NULL,
    created_ms bigint  NOT NULL
);

-- Heads. Each commit rewrites some: room beside them keeps the new rows on the same page.
CREATE TABLE blocks (
    block          bigint PRIMARY KEY,
    secret_version bigint NOT NULL,
    epoch          bigint NOT NULL,
    sequence       bigint NOT NULL,
    count          bigint NOT NULL,
    digest         bytea  NOT NULL CHECK (length(digest) = 32),
    mac            bytea  NOT NULL CHECK (length(mac) = 16)
) WITH (fillfactor = 50);

-- Block secrets, one seal for each token that may open them. A seal is never overwritten: with the
-- last one of a version all of the block's keys are lost.
CREATE TABLE block_seals (
    block          bigint NOT NULL REFERENCES blocks (block),
    secret_version bigint NOT NULL,
    kek_id         bytea  NOT NULL CHECK (length(kek_id) = 16),
    sealed         bytea  NOT NULL,
    PRIMARY KEY (block, secret_version, kek_id)
);

-- A block's records are read together, through the key's index.
CREATE TABLE records (
    block          bigint NOT NULL REFERENCES blocks (block),
    key            bytea  NOT NULL CHECK (length(key) = 9),
    epoch          bigint NOT NULL,
    sequence       bigint NOT NULL,
    secret_version bigint NOT NULL,
    mac            bytea  NOT NULL CHECK (length(mac) = 16),
    body           bytea  NOT NULL,
    PRIMARY KEY (block, key)
) WITH (fillfactor = 90);

-- The living meters. `fingerprints` repeats what `key_fingerprints` has of this meter, 16 bytes each,
-- so that a change finds the entries to remove without an index the other way round. Ids are compared
-- byte by byte, as everywhere else in the program.
CREATE TABLE meters (
    system_title bytea  PRIMARY KEY CHECK (length(system_title) = 8),
    meter_id     text   COLLATE "C" NOT NULL UNIQUE,
    block        bigint NOT NULL REFERENCES blocks (block),
    fingerprints bytea  NOT NULL CHECK (length(fingerprints) % 16 = 0)
);

-- Which living meters have a key of this value.
CREATE TABLE key_fingerprints (
    fingerprint  bytea NOT NULL CHECK (length(fingerprint) = 16),
    system_title bytea NOT NULL,
    PRIMARY KEY (fingerprint, system_title)
);
