#!lua flags=allow-oom
-- upload_stay <client> <key> -> nothing. The picture could not be deleted: it is in the store, and counts.
local client, key = unpack(ARGV, 1, 2)
call('DEL', q .. 'ux:' .. client .. ':' .. key)
