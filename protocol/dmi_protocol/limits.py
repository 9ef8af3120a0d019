"""Every bound of DMI, in one place, checked against each other. Units come last in the names."""

# The mesh: what one message may weigh, and how much may wait.
MESSAGE_BYTES = 4 * 1024 * 1024
"""The largest envelope: a snapshot chunk or a blob chunk with room to spare."""
CHUNK_BYTES = 1024 * 1024
"""Snapshots travel in pieces of this size."""
BLOB_CHUNK_BYTES = 256 * 1024
"""Blobs travel in chunks of this size, each with its own digest: small enough that beats on the same connection are not late."""
BLOB_CHUNKS_ASKED = 4
"""Chunks that are under way from one node to another at once: a megabyte."""
BLOB_DIGESTS = 16_384
"""Digests of chunks in one message."""
DISK_OWNERS = 256
"""What lies on a disk, the largest first, in one message."""
BLOB_PEERS = 8
"""Others that fetch the same blob, in one message."""
COLLECTION_ITEMS = 65_536
"""The longest array or map that an envelope may claim."""
ENVELOPE_ITEMS = 262_144
"""All values of an envelope, however nested: what the largest mesh's status has, with room to spare."""
STRING_BYTES = 1024 * 1024
COMMAND_BYTES = 1024 * 1024
"""The largest command in the log, so that any entry fits a message."""
MESH_QUEUE_MESSAGES = 1_000
"""ZeroMQ's high-water mark of one mesh link; beyond it messages are dropped, which consensus and gossip survive."""
EVENT_QUEUE_ITEMS = 10_000
"""Events that wait for the driver; beyond it network events are dropped first."""
EVENTS_PER_WRITE = 256
"""How many events the driver steps before it makes one durable write."""

# The data plane.
BUCKET_BYTES = 4 * 1024 * 1024
"""The size at which a bucket is closed. 1 to 16 MiB are about equally fast; smaller is slower."""
TENSOR_FRAME_BYTES = 1 << 30
"""The largest tensor frame: a whole tensor that its optimizer must see in one piece."""
ALIGNMENT_BYTES = 64
"""Tensors start on this boundary inside a bucket."""

BUCKETS = 16_384
"""The most buckets of one model: 64 GiB of parameters at the usual size of a bucket."""
DATA_QUEUE_MESSAGES = 65_536
"""ZeroMQ's high-water mark on data sockets. It is never reached: at most two versions of each bucket are under way."""
PEER_BEAT_MS = 1_000
PAIR_SILENT_MS = 8_000
"""A role that waits for a peer and has not heard it for so long reports the pair. A stopped process is found sooner."""
PEER_SILENT_MS = 60_000
"""A role that has not heard a peer's beat for so long gives up and names it."""
EARLY_MESSAGES = 16_384
"""Messages that a server keeps because it has not heard of the generation that they belong to yet."""
SAY_AGAIN_MS = 1_000
"""A primary that has not heard from a copy for so long says again what may have been lost."""
ROSTERS = 64
"""Rosters that wait in a role process to be read."""

# Jobs.
BUNDLE_BYTES = 64 * 1024 * 1024
BUNDLE_FILES = 4_096
ARGUMENTS = 256
LEAVES = 1_024
LOG_BYTES = 64 * 1024 * 1024
"""What one role process may write to its log before the middle is left out."""
LEDGER_BYTES = 64 * 1024 * 1024
"""What a worker writes down of the leaves that it computed."""
ROUNDS_BYTES = 64 * 1024 * 1024
"""What evaluations and broadcasts gave, as long as a script would meet them again after a recovery; it is in every checkpoint."""
TRACEBACK_BYTES = 16 * 1024
SLICES = 1_024
"""Of one batch inference: each result is in the replicated state."""
REPLICAS_PER_NODE = 64
LEASES = 2
"""Slices that a replica has at a time: it reads one while it computes the other."""
MODEL_VERSIONS = 1_024
MODEL_FILES = 16
MODEL_STAGES = 64
MODEL_CUTS = 8
"""So many ways to cut one version into stages are kept."""
"""Of one version."""
MODEL_BYTES = 1 << 40
"""Of one file."""
MEMORY_BYTES = 1 << 50
"""More than any host has."""
MODEL_TENSORS = 256
DIMENSIONS = 16
GATEWAYS = 8
"""Of one deployment, where nobody says how many."""
VERSIONS_REMEMBERED = 16
"""Of one deployment: those before the current one, and those that could not be loaded."""
DEPLOYED_REPLICAS = 256
"""Of one deployment."""
GATEWAY_REQUESTS = 4_096
"""That wait in one gateway, or are being computed."""
GATEWAY_BYTES = 256 * 1024 * 1024
"""Of their tensors."""
GATEWAY_CONNECTIONS = 4_096
BODY_BYTES = 128 * 1024 * 1024
"""Of one HTTP request, also once it is unpacked."""
BODIES_BYTES = 512 * 1024 * 1024
"""Of all that are being received by one gateway."""
HEADER_BYTES = 64 * 1024
"""Of one HTTP request, its first line among them."""
REPLICA_BYTES = 300 * 1024 * 1024
"""What a replica needs beside its model, about."""
PASSED_BYTES = 256 * 1024 * 1024
"""Of batches that a stage has given to the next one: beyond that it computes no further ones."""
REPLICA_BATCHES = 2
"""Of one gateway in one replica: it computes one, and has the next one in hand."""
COMPUTING_BATCHES = 2
"""That the computing process of a replica has: it computes one, and has the next one in hand."""
BATCH_ROWS = 65_536
"""The most inputs that a deployment may compute at once."""
JOBS_REMEMBERED = 1_000
PARTIAL_CHECKPOINTS = 64
"""Checkpoints of one job that lack a part; the oldest are given up."""
CRASHES = 5
"""How often role processes of a job may crash without the job getting any further."""
DEATHS = 3
"""The same, where the last of them ended by itself: nobody killed it, so it will do so again."""
FAILURES = 24
"""How often processes of a batch inference may fail, for whatever reason, without a further slice being computed."""
MISSES = 3
"""How often processes of a job may be of no use on a node; then the job does without this node, if others are there."""
REQUESTS_REMEMBERED = 4_096

# People and members.
MEMBERS = 10_000
VOTERS = 5
NAME_CHARACTERS = 63
INVITATIONS = 256
TOKENS = 1_024
RUMORS = 64
"""What one member may spread at a time; further things of its own it does not spread, and others do not take in."""
RUMOR_BYTES = 512
RUMOR_KEY_CHARACTERS = 128

# Time.
LEASE_MS = 2_000
"""For so long after its node was in contact with a quorum a primary may show new versions."""
LEASE_RENEWED_MS = 250
THREADS_END_MS = 60_000
"""So long the threads of a script that is over are waited for."""
ROLE_BEAT_MS = 500
ROLE_STALLED_MS = 5_000
ROLE_BUSY_MS = 2_500
"""A process that gives no sign for so long and computes is busy: whoever waits for it is told."""
PROGRESS_MS = 200
SERVED_MS = 1_000
HEADER_MS = 10_000
"""So long the head of an HTTP request may take; a body may take as long, and longer by its size at ``BODY_BYTES_PER_S``."""
BODY_BYTES_PER_S = 64 * 1024
UNTAKEN_BYTES = 256 * 1024
"""Of answers that a client has not taken: with more than that it is not read from, and no further answer is made."""
TAKE_MS = 30_000
"""Who has taken nothing of its answers for so long never will, and is given up."""
STOP_MS = 8_000
"""So long a gateway that is stopped lets those read on whose answers it has begun."""
REQUEST_ROWS = 1 << 20
"""Of one request to a gateway. (Rows may be empty, and so many come in few bytes.)"""
PIECES_AHEAD = 64
"""Of one request so many pieces wait at a time; the rest is cut when they are handed out."""
IDLE_MS = 75_000
"""So long a connection without a request is kept."""
REQUEST_MS = 30_000
"""So long a request waits for its answer, where it does not say."""
REQUEST_MOST_MS = 600_000
REPLICA_BEAT_MS = 500
REPLICA_SILENT_MS = 3_000
"""What a replica has in hand that was not heard for so long is given to another one, too."""
ROLE_START_MS = 120_000
"""From the start of a role process to its ``Bound``: importing torch on a busy host takes long. Fetching is not counted."""
FETCH_AGAIN_MS = 1_000
"""A blob that nobody gives is asked for again after so long."""
PIN_MS = 30 * 60_000
"""For so long a blob stays that something is about to speak of: as long as its largest companion may travel."""
RECOPY_MS = 30_000
"""A member that is dead for so long is not counted on to keep its copies."""
RECOPIES = 64
"""Copies of blobs that are on their way to new checkpoint holders at once."""


def check() -> None:
    """Assert the relations between the bounds."""
    assert CHUNK_BYTES + 64 * 1024 <= MESSAGE_BYTES
    assert BLOB_CHUNK_BYTES <= CHUNK_BYTES
    assert BLOB_DIGESTS * 32 + MODEL_BYTES // BLOB_CHUNK_BYTES // 8 + 64 * 1024 <= MESSAGE_BYTES
    assert STRING_BYTES <= MESSAGE_BYTES
    assert COLLECTION_ITEMS <= ENVELOPE_ITEMS
    assert COMMAND_BYTES + CHUNK_BYTES + 64 * 1024 <= MESSAGE_BYTES
    assert BUCKET_BYTES <= TENSOR_FRAME_BYTES
    assert 4 * BUCKETS <= DATA_QUEUE_MESSAGES
    assert PEER_BEAT_MS * 4 <= PEER_SILENT_MS
    assert VOTERS % 2 == 1
    assert VOTERS <= MEMBERS
    assert ROLE_BEAT_MS * 4 <= ROLE_STALLED_MS
    assert REPLICA_BEAT_MS * 4 <= REPLICA_SILENT_MS
    assert LEASE_RENEWED_MS * 4 <= LEASE_MS
    assert ROLE_BEAT_MS < ROLE_BUSY_MS < ROLE_STALLED_MS < PAIR_SILENT_MS < PEER_SILENT_MS
    assert ALIGNMENT_BYTES & (ALIGNMENT_BYTES - 1) == 0
    assert LEAVES & (LEAVES - 1) == 0


check()
