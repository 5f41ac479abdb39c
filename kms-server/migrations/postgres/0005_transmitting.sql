-- Counters, what a site knows of its peer, and what is kept of both: as in SQLite.

UPDATE schema_version SET version = 5;

-- What was set aside, named by its MAC too: a site that was rolled back may write two records at one place. Who decided,
-- and when.
ALTER TABLE divergence
    DROP CONSTRAINT divergence_pkey,
    ADD PRIMARY KEY (block, key, epoch, sequence, mac),
    ADD COLUMN decided_ms bigint,
    ADD COLUMN decided_by text;
CREATE INDEX divergence_undecided ON divergence (block) WHERE resolution IS NULL;
