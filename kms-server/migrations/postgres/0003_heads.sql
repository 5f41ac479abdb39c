-- What the token signs so that nobody else can change or put back: the domain's record, and where all
-- blocks stand.

UPDATE schema_version SET version = 3;

-- Over all other columns. NULL: made by an older version; `kms-server migrate` signs.
ALTER TABLE domain ADD COLUMN signature bytea CHECK (signature IS NULL OR length(signature) = 64);

-- One row. `body` is `domain::freshness::HeadTable`: the newest state of each block, and the ends of all
-- audit chains that it was read from. Digests don't compress.
CREATE TABLE head_table (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one),
    number    bigint  NOT NULL,
    body      bytea   NOT NULL,
    signature bytea   NOT NULL CHECK (length(signature) = 64)
);
ALTER TABLE head_table ALTER COLUMN body SET STORAGE EXTERNAL;
