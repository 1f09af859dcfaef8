-- The most tokens that one content part becomes, by its type; a type that is not there counts as the whole context.
-- NOT VALID: the rows that are there have the default.
ALTER TABLE models ADD COLUMN media_max jsonb NOT NULL DEFAULT '{}';
ALTER TABLE models ADD CONSTRAINT models_media_max_object CHECK (jsonb_typeof(media_max) = 'object') NOT VALID;
