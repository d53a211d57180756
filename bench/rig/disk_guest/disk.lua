-- Writes to the guest's disks on behalf of whoever connects to port 9100. Each line is a request, and
-- each is answered by one line when what it wrote is on the disk:
--
--   row TOKEN          adds a row to the database on the first disk; the number of the row
--   sector K VALUE     writes sector K, of 4 KiB, of the second disk: VALUE, its checksum, filler; VALUE
--   rows               "N rows LIST": what the disk has of the database after all caches were dropped,
--                      and it was found sound; LIST is "number:token", separated by commas
--   sectors COUNT      the values of the first COUNT sectors, as the disk has them; BAD for a torn one
--   sequential KIB     writes so much to the second disk, 256 KiB at a time, without the cache
--   random COUNT       writes COUNT blocks of 4 KiB all over it, likewise
--   sync COUNT         writes COUNT blocks of 4 KiB, and has each synced

local ffi = require "ffi"
local socket = require "socket.core"

ffi.cdef [[
int sqlite3_open(const char *path, void **db);
int sqlite3_exec(void *db, const char *sql, void *callback, void *data, char **message);
int sqlite3_prepare_v2(void *db, const char *sql, int bytes, void **statement, const char **tail);
int sqlite3_step(void *statement);
int sqlite3_finalize(void *statement);
const char *sqlite3_column_text(void *statement, int column);
const char *sqlite3_errmsg(void *db);
int64_t sqlite3_last_insert_rowid(void *db);
int open(const char *path, int flags, ...);
long pwrite(int fd, const void *bytes, size_t count, int64_t offset);
long pread(int fd, void *bytes, size_t count, int64_t offset);
int fsync(int fd);
int posix_memalign(void **memory, size_t alignment, size_t size);
]]

local O_RDWR, O_DIRECT = 2, 0x4000
local SECTOR_BYTES, CHUNK_BYTES = 4096, 256 * 1024
local MODULUS = 2147483647

local sqlite = ffi.load "/lib/libsqlite3.so.0"

local function checked(ok, what)
  if not ok then error(what, 0) end
end

-- A database whose every transaction is on the disk when it is over.
local handle = ffi.new "void *[1]"
checked(sqlite.sqlite3_open("/data/log.db", handle) == 0, "no database")
local db = handle[0]

-- The first column of every row.
local function query(sql)
  local statement = ffi.new "void *[1]"
  checked(sqlite.sqlite3_prepare_v2(db, sql, -1, statement, nil) == 0,
    ffi.string(sqlite.sqlite3_errmsg(db)))
  local found, code = {}, nil
  repeat
    code = sqlite.sqlite3_step(statement[0])
    if code == 100 then found[#found + 1] = ffi.string(sqlite.sqlite3_column_text(statement[0], 0)) end
  until code ~= 100
  sqlite.sqlite3_finalize(statement[0])
  checked(code == 101, ffi.string(sqlite.sqlite3_errmsg(db)))
  return found
end

query "PRAGMA journal_mode = TRUNCATE"
query "PRAGMA synchronous = FULL"
query "CREATE TABLE log (number INTEGER PRIMARY KEY, token TEXT UNIQUE, filler TEXT, sum INTEGER)"

local function sum_of(text)
  local sum = 0
  for at = 1, #text do sum = (sum * 31 + text:byte(at)) % MODULUS end
  return sum
end

local function add_row(token)
  local filler = (token .. " "):rep(20)
  query(("INSERT INTO log (token, filler, sum) VALUES ('%s', '%s', %d)")
    :format(token, filler, sum_of(filler)))
  return tostring(tonumber(sqlite.sqlite3_last_insert_rowid(db)))
end

local function drop_caches()
  local file = io.open("/proc/sys/vm/drop_caches", "w")
  file:write "3"
  file:close()
end

local function all_rows()
  drop_caches()
  query "PRAGMA shrink_memory"
  local verdict = table.concat(query "PRAGMA integrity_check", " ")
  checked(verdict == "ok", "integrity_check: " .. verdict)
  local rows = query "SELECT number || ':' || token FROM log ORDER BY number"
  local fillers = query "SELECT filler || sum FROM log ORDER BY number"
  for index, row in ipairs(rows) do
    local filler = (row:match ":(.*)" .. " "):rep(20)
    checked(fillers[index] == filler .. sum_of(filler), "row " .. row .. " is torn")
  end
  return #rows .. " rows " .. table.concat(rows, ",")
end

-- Where memory begins that the disk takes as it is.
local function aligned(bytes)
  local memory = ffi.new "void *[1]"
  checked(ffi.C.posix_memalign(memory, SECTOR_BYTES, bytes) == 0, "no memory")
  return ffi.cast("char *", memory[0])
end

local disk = ffi.C.open("/dev/vdb", O_RDWR + O_DIRECT)
local buffer = aligned(CHUNK_BYTES)

local function write(bytes, offset)
  checked(ffi.C.pwrite(disk, buffer, bytes, offset) == bytes, "the disk does not take it")
end

local function sector_of(value)
  local record = ("%s %d "):format(value, sum_of(value))
  return record .. ("."):rep(SECTOR_BYTES - #record)
end

local function put_sector(number, value)
  ffi.copy(buffer, sector_of(value), SECTOR_BYTES)
  write(SECTOR_BYTES, number * SECTOR_BYTES)
  checked(ffi.C.fsync(disk) == 0, "the disk does not sync")
  return value
end

local function get_sectors(count)
  local found = {}
  for number = 0, count - 1 do
    checked(ffi.C.pread(disk, buffer, SECTOR_BYTES, number * SECTOR_BYTES) == SECTOR_BYTES, "unread")
    local text = ffi.string(buffer, SECTOR_BYTES)
    local value = text:match "^(%S+) "
    found[#found + 1] = not value and "-" or (text == sector_of(value) and value or "BAD")
  end
  return table.concat(found, ",")
end

local size = 0

local function measure(kind, count)
  ffi.fill(buffer, CHUNK_BYTES, math.random(255))
  if size == 0 then
    local file = io.open("/sys/block/vdb/size")
    size = file:read "*n" * 512
    file:close()
  end
  if kind == "sequential" then
    local offset = 0
    for _ = 1, count * 1024 / CHUNK_BYTES do
      write(CHUNK_BYTES, offset)
      offset = (offset + CHUNK_BYTES) % size
    end
    ffi.C.fsync(disk)
  else
    for _ = 1, count do
      write(SECTOR_BYTES, math.random(0, size / SECTOR_BYTES - 1) * SECTOR_BYTES)
      if kind == "sync" then ffi.C.fsync(disk) end
    end
  end
  return "done"
end

local function answer(line)
  local words = {}
  for word in line:gmatch "%S+" do words[#words + 1] = word end
  if words[1] == "row" then return add_row(words[2]) end
  if words[1] == "rows" then return all_rows() end
  if words[1] == "sector" then return put_sector(tonumber(words[2]), words[3]) end
  if words[1] == "sectors" then return get_sectors(tonumber(words[2])) end
  return measure(words[1], tonumber(words[2]))
end

local server = socket.tcp4()
server:setoption("reuseaddr", true)
checked(server:bind("*", 9100), "no port")
checked(server:listen(8), "no port")
local peers = { server }
while true do
  for _, peer in ipairs(socket.select(peers, nil)) do
    if peer == server then
      local connection = server:accept()
      connection:setoption("tcp-nodelay", true)
      peers[#peers + 1] = connection
    else
      local line = peer:receive "*l"
      if line then
        local ok, text = pcall(answer, line)
        peer:send((ok and text or "ERROR " .. text) .. "\n")
      else
        peer:close()
        for index, other in ipairs(peers) do
          if other == peer then table.remove(peers, index) end
        end
      end
    end
  end
end
