-- Run once on the primary, as postgres: psql -v ON_ERROR_STOP=1 -f roles.sql
-- The service owns its database and nothing else. Set passwords with \password, not here.
CREATE ROLE ami_admin LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION;
CREATE ROLE ami_replica LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE DATABASE ami_kms OWNER ami_admin ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE ami_kms FROM PUBLIC;
