/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the tests of delegates share: the wire format as C sees it, a fake
 * delegate that does what a test says, and the real one.
 */

#ifndef DELEGATE_H
# define DELEGATE_H

# include <stdint.h>

# include "support.h"

/* The messages, see docs/protocol.md. */

# define WIRE_MAGIC 0x64524956U /* "VIRd", as a little-endian number */
# define WIRE_PROTOCOL 1
# define WIRE_HELLO 0
# define WIRE_OUTCOME UINT32_MAX
# define WIRE_BODY_MAX 32768

enum {
    WIRE_HANDLED = 0,
    WIRE_NOT_HANDLED = 1,
    WIRE_REFUSED = 2,
    WIRE_FAILED = 3,
    WIRE_UNKNOWN = 4,
};

typedef struct {
    uint32_t magic;
    uint32_t protocol;
    uint32_t operation;
    uint32_t version;
    uint32_t size;
    uint32_t flags;
    uint64_t request;
} WireHeader;

typedef struct {
    uint32_t verdict;
    uint32_t code;
    int32_t errnum;
    uint32_t results;
    uint32_t text;
    uint32_t reserved;
} WireAnswer;

typedef struct {
    WireHeader header;
    unsigned char body[WIRE_BODY_MAX];
    /* How many bytes came, and how many descriptors: those are closed. */
    size_t length;
    int descriptors;
} WireMessage;

/*
 * A fake delegate: a process of its own, with a thread for each connection
 * that runs what the test says.
 */
typedef struct Fake Fake;
typedef void (*FakePeer)(Fake *fake, int connection);

/* What a fake and its test tell each other. Both have it in their memory. */
typedef struct {
    /* Connections that were accepted, and those that have ended. */
    int accepted;
    int ended;
    /* Requests that were received by wire_receive(), hellos not counted. */
    int requests;
    /* The last one. */
    uint64_t request;
    uint32_t operation;
    int descriptors;
    size_t length;
    /* Up to the test: what its peer is to do, and what it found. */
    int phase;
    int found;
    pid_t pid;
    WireAnswer answer;
    char text[512];
} FakeShared;

struct Fake {
    const char *address;
    pid_t pid;
    int listener;
    FakeShared *shared;
    FakePeer peer;
};

/* The test's own directory, made at first use. */
const char *delegate_directory(void);
/* Removes it: to be called after the test, however that ended. */
void delegate_remove_directory(pid_t test);

# define DELEGATE_TEST(name, ...) \
    TEST(name, .after = delegate_remove_directory, ##__VA_ARGS__)

/* Starts a fake at unix:DIRECTORY/NAME. @peer NULL never accepts, and lets
 * @backlog connections wait and one more. */
Fake *fake_start(const char *name, FakePeer peer, int backlog);
/* The same over a connection that there is already: it has no address. */
Fake *fake_start_on(int connection, FakePeer peer);
/* Ends it as SIGKILL does. Its socket's file stays. */
void fake_kill(Fake *fake);
/* Ends it, and forgets what it shared. */
void fake_stop(Fake *fake);
/* Starts it again at the same address. */
void fake_restart(Fake *fake);

/* Waits until a number that a fake shares is what is wanted. */
# define wait_for(number, wanted) \
    delegate_wait_for(__FILE__, __LINE__, #number, &(number), wanted)

void delegate_wait_for(const char *file, int line, const char *what,
                       const int *number, int wanted);

/* Parts of what a peer does. Receiving returns false at the end. */
bool wire_receive(Fake *fake, int connection, WireMessage *message);
void wire_send(int connection, const void *message, size_t length);
/* Both sides say hello; the fake's has all operations. */
bool wire_greet(Fake *fake, int connection);
void wire_hello(int connection, uint32_t operations);
/* Answers a request with @results and @text after it. */
void wire_answer(int connection, const WireHeader *request, WireAnswer answer,
                 const int32_t *results, const char *text);
/* How many results a request needs. */
size_t wire_results(const WireMessage *request);

/* Peers. They greet, and then to every request... */

/* ... do it to the process of @shared->pid, and say so. */
void peer_obey(Fake *fake, int connection);
/* ... answer what @shared->answer and @shared->text are at that time. */
void peer_say(Fake *fake, int connection);
/* ... say nothing. */
void peer_silent(Fake *fake, int connection);

/*
 * The real delegate: the command, with a policy.
 */
typedef struct {
    const char *address;
    const char *audit;
    pid_t pid;
} Delegate;

/* SKIPs the test where there is no command. @policy NULL allows root to do
 * what the tests do. */
Delegate delegate_start(const char *policy);
void delegate_kill(Delegate *delegate);
/* At the same address. */
void delegate_restart(Delegate *delegate);
void delegate_stop(Delegate *delegate);
/* How many lines of the audit have that text. */
int delegate_audit_lines(const Delegate *delegate, const char *part);

/* Connects, which must succeed. @conn's delegate is at @address from now on. */
void connect_to(struct _virConnect *conn, const char *address,
                unsigned int timeout, unsigned int flags);
void disconnect_from(struct _virConnect *conn);

/* How long a call may wait where nothing is to be late. */
# define LONG 60000
/* The same where what is waited for never comes. */
# define SHORT 200

#endif /* DELEGATE_H */
