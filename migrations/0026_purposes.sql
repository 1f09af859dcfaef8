-- What an intent is for is its key up to the number of the attempt: the biller looks for it before it asks again.

-- As short as the list of intents that were ever made.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX chain_intents_purpose ON chain_intents (wallet, split_part(key, '#', 1));
