-- By which the database calls Lambda; aws_commons comes with it.
CREATE EXTENSION IF NOT EXISTS aws_lambda CASCADE;
