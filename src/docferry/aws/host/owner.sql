-- The role that owns the trigger functions, which run with its rights whoever writes a row: it may call Lambda, and
-- `docferry apply` adds what it needs of the outbox. psql is given its name as `owner`, and the capture mode as `capture`.
SELECT format('CREATE ROLE %I NOLOGIN', :'owner')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'owner') \gexec
-- Whoever gives a function to a role must be a member of it.
GRANT :"owner" TO CURRENT_USER;
SELECT :'capture' = 'lambda' AS sends \gset
\if :sends
GRANT USAGE ON SCHEMA aws_lambda TO :"owner";
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA aws_lambda TO :"owner";
\endif
