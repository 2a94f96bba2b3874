#!lua flags=allow-oom
-- upload_leave <client> <key> -> {'yours'} | {'leaving'}
-- A picture that its client deletes, whoever holds it. 'yours': to be deleted now, with upload_forget or upload_stay to follow. 'leaving':
-- another one deletes it at this moment, come again at once.
local client, key = unpack(ARGV, 1, 2)
local mine = call('SET', q .. 'ux:' .. client .. ':' .. key, 1, 'NX', 'EX', 60) -- should its deleter die
return { mine and 'yours' or 'leaving' }
