#!/bin/sh
# Runs once, when PostgreSQL's image makes the database: the role of relay and page, who own nothing. Its password is in
# MODERATION_PASSWORD; `dnf-worker database migrate` grants it the tables.
set -eu
: "${MODERATION_PASSWORD:?choose a password}"
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv password MODERATION_PASSWORD
CREATE ROLE moderation LOGIN PASSWORD :'password';
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO moderation;
SQL
