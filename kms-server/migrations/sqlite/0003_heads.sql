-- What the token signs so that nobody else can change or put back: the domain's record, and where all
-- blocks stand.

PRAGMA user_version = 3;

-- Over all other columns. NULL: made by an older version; `kms-server migrate` signs.
ALTER TABLE domain ADD COLUMN signature BLOB CHECK (signature IS NULL OR length(signature) = 64);

-- One row. `body` is `domain::freshness::HeadTable`: the newest state of each block, and the ends of all
-- audit chains that it was read from.
CREATE TABLE head_table (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    number    INTEGER NOT NULL,
    body      BLOB    NOT NULL,
    signature BLOB    NOT NULL CHECK (length(signature) = 64)
) STRICT;
