-- Servers whose connections persist: web pages, and numbers that go on from request to request. What
-- is sent follows from what was received, so that a client can tell whether a byte is wrong, missing
-- or doubled; nothing but /random depends on the time.
--
--   port 8080, HTTP/1.1:
--     GET /page/N              N bytes, the same at each request: lines of 64 bytes, line n (from 0 on)
--                              of which is n in 15 digits, a space, and FILLER
--     GET /random/N            N bytes: 32 random digits again and again, others at each request
--     GET /connect/HOST:PORT   opens a TCP connection to there, and closes it when the page is asked
--                              for again on the same connection
--     GET /dial/HOST:PORT      opens a TCP connection to there, and answers on it as port 9000 does
--   port 9000:
--     any line                 answered by "n sum line": n counts the lines of the connection, from 1
--                              on; sum is over all bytes of its lines so far, their ends included:
--                              sum = (sum * 31 + byte) mod 2147483647, from 0 on
--
-- A host is an IPv4 address, or an IPv6 address in brackets.

local socket = require "socket.core"

local FILLER = "the quick brown fox jumps over the lazy dog ...\n"
local LINE_BYTES = 16 + #FILLER
local BLOCK_LINES = 256
local BLOCK_BYTES = BLOCK_LINES * LINE_BYTES
local MODULUS = 2147483647

-- What waits: the coroutine of each socket.
local waiting = { read = {}, write = {} }

local function await(what, peer)
  waiting[what][peer] = coroutine.running()
  coroutine.yield()
end

-- Run something beside everything else.
local function start(work, ...)
  local ok, problem = coroutine.resume(coroutine.create(work), ...)
  if not ok then print("server: " .. problem) end
end

-- The next line without its end, or nil when the connection has ended.
local function receive_line(peer)
  local line, problem, rest = peer:receive("*l")
  while not line do
    if problem ~= "timeout" then return nil end
    await("read", peer)
    line, problem, rest = peer:receive("*l", rest)
  end
  return line
end

-- False when the connection has ended.
local function send(peer, bytes)
  local sent = 0
  while sent < #bytes do
    local last, problem, before = peer:send(bytes, sent + 1)
    if not last and problem ~= "timeout" then return false end
    sent = last or before
    if sent < #bytes then await("write", peer) end
  end
  return true
end

-- A connection that does not wait, neither for its peer nor to fill a packet.
local function prepare(peer)
  peer:settimeout(0)
  peer:setoption("tcp-nodelay", true)
  return peer
end

local function connect(host, port)
  local peer = host:find(":", 1, true) and socket.tcp6() or socket.tcp4()
  prepare(peer)
  local ok, problem = peer:connect(host, port)
  if not ok and problem == "timeout" then
    await("write", peer)
    ok, problem = peer:connect(host, port)
  end
  if ok or problem == "already connected" then return peer end
  peer:close()
  return nil, problem
end

local function count(peer)
  local n, sum = 0, 0
  for line in receive_line, peer do
    for at = 1, #line do sum = (sum * 31 + line:byte(at)) % MODULUS end
    sum = (sum * 31 + 10) % MODULUS
    n = n + 1
    if not send(peer, ("%d %d %s\n"):format(n, sum, line)) then break end
  end
  peer:close()
end

local function head(status, size)
  return ("HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"):format(status, size)
end

local function answer(peer, status, text)
  return send(peer, head(status, #text) .. text)
end

local function block(first_line, size)
  local lines = {}
  for n = 1, math.ceil(size / LINE_BYTES) do
    lines[n] = ("%015d %s"):format(first_line + n - 1, FILLER)
  end
  return table.concat(lines):sub(1, size)
end

-- Pages that are small are asked for often.
local small_pages = {}

local function send_page(peer, size)
  if size <= BLOCK_BYTES then
    small_pages[size] = small_pages[size] or head("200 OK", size) .. block(0, size)
    return send(peer, small_pages[size])
  end
  if not send(peer, head("200 OK", size)) then return false end
  for at = 0, size - 1, BLOCK_BYTES do
    local bytes = block(at / LINE_BYTES, math.min(BLOCK_BYTES, size - at))
    if not send(peer, bytes) then return false end
    -- It is the others' turn.
    await("write", peer)
  end
  return true
end

local random = assert(io.open("/dev/urandom", "rb"))
random:setvbuf("no")

-- Two copies of a machine may draw the same random bytes, but not at the same microsecond.
local function random_digits()
  local digits = random:read(8):gsub(".", function(byte) return ("%02x"):format(byte:byte()) end)
  return digits .. ("%016.0f"):format(socket.gettime() * 1e6)
end

local function send_random(peer, size)
  return answer(peer, "200 OK", random_digits():rep(math.ceil(size / 32)):sub(1, size))
end

-- Serves one request; false when the connection has ended.
local function serve(peer, path, state)
  local page, size = path:match "^/(%a+)/(%d+)$"
  if page == "page" then return send_page(peer, tonumber(size)) end
  if page == "random" then return send_random(peer, tonumber(size)) end
  local act, host, port = path:match "^/(%a+)/%[?([%x.:]-)%]?:(%d+)$"
  if act ~= "connect" and act ~= "dial" then return answer(peer, "404 Not Found", "no such page\n") end
  if state.opened then state.opened:close() end
  local opened, problem = connect(host, port)
  state.opened = act == "connect" and opened or nil
  if not opened then return answer(peer, "502 Bad Gateway", problem .. "\n") end
  if act == "dial" then start(count, opened) end
  return answer(peer, "200 OK", "connected\n")
end

local function serve_all(peer)
  local state = {}
  for line in receive_line, peer do
    local path = line:match "^GET (%S+) HTTP/1%.1$"
    repeat line = receive_line(peer) until not line or line == ""
    if not line then break end
    local ok = path and serve(peer, path, state) or not path and answer(peer, "400 Bad Request", "")
    if not ok then break end
  end
  if state.opened then state.opened:close() end
  peer:close()
end

local function listen(listener, host, port, work)
  if not listener then return end
  listener:settimeout(0)
  listener:setoption("reuseaddr", true)
  assert(listener:bind(host, port))
  assert(listener:listen(512))
  while true do
    local peer = listener:accept()
    if peer then start(work, prepare(peer)) else await("read", listener) end
  end
end

local function listen_on_all(port, work)
  start(listen, socket.tcp4(), "0.0.0.0", port, work)
  local listener = socket.tcp6()
  if listener then listener:setoption("ipv6-v6only", true) end
  start(listen, listener, "::", port, work)
end

local function keys(map)
  local list = {}
  for key in pairs(map) do list[#list + 1] = key end
  return list
end

local function resume_all(what, ready)
  for _, peer in ipairs(ready) do
    local work = waiting[what][peer]
    waiting[what][peer] = nil
    local ok, problem = coroutine.resume(work)
    if not ok then print("server: " .. problem) end
  end
end

listen_on_all(8080, serve_all)
listen_on_all(9000, count)
while true do
  local readable, writable = socket.select(keys(waiting.read), keys(waiting.write))
  resume_all("read", readable)
  resume_all("write", writable)
end
