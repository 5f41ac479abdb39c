-- Counters, what a site knows of its peer, and what is kept of both: as in SQLite.

UPDATE schema_version SET version = 5;

CREATE TABLE counter_marks (
    block          bigint NOT NULL PRIMARY KEY,
    epoch          bigint NOT NULL,
    reserved       bigint NOT NULL,
    holder         bytea  CHECK (length(holder) = 16),
    term           bigint NOT NULL,
    secret_version bigint NOT NULL,
    mac            bytea  NOT NULL CHECK (length(mac) = 16)
);

CREATE TABLE witnessed_marks (
    site     text   NOT NULL,
    block    bigint NOT NULL,
    epoch    bigint NOT NULL,
    reserved bigint NOT NULL,
    PRIMARY KEY (site, block)
);
