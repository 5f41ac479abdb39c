-- Counters, what a site knows of its peer, and what is kept of both.

PRAGMA user_version = 5;
