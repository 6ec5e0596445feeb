/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Housekeeping: a delegate, started as the command virt-internal that lies
 * beside this program, has the threads of VMs in cgroups of their own. A VM is
 * a process that makes threads all the time.
 */
#define _GNU_SOURCE
#include "support.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define VCPU VIR_INTERNAL_THREAD_VCPU
#define EMULATOR VIR_INTERNAL_THREAD_EMULATOR
#define IOTHREAD VIR_INTERNAL_THREAD_IOTHREAD
#define HELPER VIR_INTERNAL_THREAD_HELPER

/* --- Time and files ------------------------------------------------------- */

/* What is waited for comes long before, on the slowest machine. */
#define WAIT_MS 120000

static long long
now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void
pause_ms(long ms)
{
    struct timespec time = { ms / 1000, ms % 1000 * 1000000 };

    nanosleep(&time, NULL);
}

#define wait_until(condition) \
    do { \
        long long begun_ = now_ms(); \
        while (!(condition)) { \
            if (now_ms() - begun_ > WAIT_MS) \
                FAIL("expected at some time %s", #condition); \
            pause_ms(2); \
        } \
    } while (0)

/* The whole of a small file, or NULL. */
static const char *
contents(const char *path)
{
    static char buffers[8][16384];
    static int next;
    char *buffer = buffers[next++ % 8];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t length = 0;
    ssize_t got;

    if (fd < 0)
        return NULL;
    while ((got = read(fd, buffer + length, 16383 - length)) > 0)
        length += got;
    close(fd);
    buffer[length] = 0;
    return got < 0 ? NULL : buffer;
}

static int
put(const char *path, const char *what)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    ssize_t put;
    int errnum;

    if (fd < 0)
        return -1;
    put = write(fd, what, strlen(what));
    errnum = errno;
    close(fd);
    errno = errnum;
    return put < 0 ? -1 : 0;
}

static void
must_put(const char *path, const char *what)
{
    if (put(path, what) < 0)
        FAIL("cannot write '%s' to %s: %s", what, path, strerror(errno));
}

static bool
exists(const char *path)
{
    struct stat status;

    return stat(path, &status) == 0;
}

/* --- cgroups -------------------------------------------------------------- */

/* The hierarchy that has cpuset. */
static bool v1;
static const char *mount_point;

static void
find_hierarchy(void)
{
    const char *controllers;

    if (exists("/sys/fs/cgroup/cpuset/cpuset.cpus")) {
        v1 = true;
        mount_point = "/sys/fs/cgroup/cpuset";
        return;
    }
    controllers = contents("/sys/fs/cgroup/cgroup.subtree_control");
    if (!controllers || !strstr(controllers, "cpuset"))
        SKIP("there is no hierarchy of cgroups with cpuset");
    mount_point = "/sys/fs/cgroup";
}

static const char *
hierarchy(void)
{
    return v1 ? "cpuset" : "v2";
}

static const char *
at(const char *group, const char *name)
{
    return text("%s%s/%s", mount_point, group, name);
}

/* The test's own cgroup, in which it makes its VMs'. */
static const char *
top(pid_t test)
{
    return text("/%s", name_of_test("libvirt-internal-housekeeping", test));
}

static void
make_group(const char *group)
{
    must(mkdir(text("%s%s", mount_point, group), 0755));
    if (!v1)
        return;
    /* They are empty at first. */
    must_put(at(group, "cpuset.mems"), contents(at("", "cpuset.mems")));
    must_put(at(group, "cpuset.cpus"), contents(at("", "cpuset.cpus")));
}

/* Makes a VM's base in the test's cgroup. */
static const char *
make_base(const char *name)
{
    const char *group = text("%s/%s", top(getpid()), name);

    if (!exists(text("%s%s", mount_point, top(getpid())))) {
        make_group(top(getpid()));
        if (!v1)
            must_put(at(top(getpid()), "cgroup.subtree_control"), "+cpuset");
    }
    make_group(group);
    return strdup(group);
}

static int
remove_group(const char *path, const struct stat *status, int type,
             struct FTW *place)
{
    (void) status;
    (void) place;
    if (type == FTW_DP) {
        long long begun = now_ms();

        while (rmdir(path) < 0 && errno == EBUSY && now_ms() - begun < WAIT_MS)
            pause_ms(2);
    }
    return 0;
}

static int
remove_file(const char *path, const struct stat *status, int type,
            struct FTW *place)
{
    (void) status;
    (void) type;
    (void) place;
    remove(path);
    return 0;
}

static const char *
directory(pid_t test)
{
    return text("/tmp/%s",
                name_of_test("libvirt-internal-housekeeping", test));
}

/* The child of the root that the test makes. */
static const char *
name_in_root(pid_t test)
{
    return name_of_test("libvirt-internal-hk-root", test);
}

static void
clean_up(pid_t test)
{
    const char *others[] = { "/sys/fs/cgroup/unified", "/sys/fs/cgroup" };

    find_hierarchy();
    nftw(text("%s%s", mount_point, top(test)), remove_group, 8,
         FTW_DEPTH | FTW_PHYS);
    rmdir(text("%s/%s", mount_point, name_in_root(test)));
    for (size_t i = 0; i < 2; i++)
        rmdir(text("%s%s", others[i], top(test)));
    nftw(directory(test), remove_file, 8, FTW_DEPTH | FTW_PHYS);
}

/* A thread's cgroup; "" when it is no more. */
static const char *
group_of(pid_t pid, pid_t tid)
{
    const char *lines = contents(text("/proc/%d/task/%d/cgroup", pid, tid));
    const char *line = lines;

    for (; line && *line; line = strchr(line, '\n'), line += line != NULL) {
        const char *controllers = strchr(line, ':') + 1;
        const char *path = strchr(controllers, ':') + 1;
        size_t length = path - controllers - 1;

        if (v1 ? length == 6 && memcmp(controllers, "cpuset", 6) == 0
               : length == 0)
            return text("%.*s", (int) strcspn(path, "\n"), path);
    }
    return "";
}

static const char *
cpus_of(pid_t pid, pid_t tid)
{
    const char *status = contents(text("/proc/%d/task/%d/status", pid, tid));
    const char *line = status ? strstr(status, "Cpus_allowed_list:\t") : NULL;

    if (!line)
        return "";
    line += strlen("Cpus_allowed_list:\t");
    return text("%.*s", (int) strcspn(line, "\n"), line);
}

/* --- VMs ------------------------------------------------------------------ */

#define WORKERS 4

typedef struct {
    /* In the order of their making. */
    pid_t vcpus[2], iothread, helper;
    atomic_int ready;
    atomic_int made;
    atomic_int ends_iothread;
} Vm;

typedef struct {
    pid_t pid;
    Vm *vm;
} Handle;

static void *
be_named(void *tid)
{
    *(pid_t *) tid = syscall(SYS_gettid);
    for (;;)
        pause();
    return NULL;
}

static void *
be_iothread(void *opaque)
{
    Vm *vm = opaque;

    vm->iothread = syscall(SYS_gettid);
    while (!vm->ends_iothread)
        pause_ms(1);
    return NULL;
}

static void *
be_short(void *vm)
{
    atomic_fetch_add(&((Vm *) vm)->made, 1);
    return NULL;
}

static void *
be_nested(void *vm)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, be_short, vm) == 0)
        pthread_join(thread, NULL);
    return be_short(vm);
}

/* It makes threads that make threads. */
static void *
be_worker(void *vm)
{
    for (;;) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, be_nested, vm) == 0)
            pthread_join(thread, NULL);
    }
    return NULL;
}

/* It makes another of its kind, and ends. */
static void *
be_link(void *vm)
{
    pthread_attr_t detached;
    pthread_t thread;

    pause_ms(3);
    atomic_fetch_add(&((Vm *) vm)->made, 1);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &detached, be_link, vm) != 0)
        _exit(1);
    return NULL;
}

static void
start_thread(void *(*run)(void *), void *opaque)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, run, opaque) != 0)
        _exit(1);
}

/* A process in that cgroup: two vCPUs, an IOThread, a helper, and WORKERS
 * threads that run @work, if any. */
static Handle
start_vm_with(const char *base, void *(*work)(void *))
{
    Handle handle;

    handle.vm = mmap(NULL, sizeof(Vm), PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    expect_true(handle.vm != MAP_FAILED);
    handle.pid = must(fork());
    if (handle.pid == 0) {
        Vm *vm = handle.vm;

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (put(at(base, "cgroup.procs"), "0") < 0)
            _exit(1);
        start_thread(be_named, &vm->vcpus[0]);
        start_thread(be_named, &vm->vcpus[1]);
        start_thread(be_iothread, vm);
        start_thread(be_named, &vm->helper);
        for (int i = 0; work && i < WORKERS; i++)
            start_thread(work, vm);
        vm->ready = 1;
        for (;;)
            pause();
    }
    wait_until(handle.vm->ready && handle.vm->vcpus[0] && handle.vm->vcpus[1]
               && handle.vm->iothread && handle.vm->helper
               && (!work || handle.vm->made > 20));
    return handle;
}

static Handle
start_vm(const char *base, bool quiet)
{
    return start_vm_with(base, quiet ? NULL : be_worker);
}

static void
end_vm(Handle handle)
{
    must(kill(handle.pid, SIGKILL));
    must(waitpid(handle.pid, NULL, 0));
    munmap(handle.vm, sizeof(Vm));
}

static bool
is_vcpu(Handle handle, pid_t tid)
{
    return tid == handle.vm->vcpus[0] || tid == handle.vm->vcpus[1];
}

/* Every thread that is no vCPU is in that cgroup. */
static void
expect_all_in(Handle handle, const char *group)
{
    DIR *threads = opendir(text("/proc/%d/task", handle.pid));
    struct dirent *entry;

    expect_true(threads != NULL);
    while ((entry = readdir(threads))) {
        pid_t tid = atoi(entry->d_name);
        const char *found;

        if (tid <= 0 || is_vcpu(handle, tid))
            continue;
        found = group_of(handle.pid, tid);
        /* In version 1 a thread that exits is in the root for a moment. */
        if (v1 && strcmp(found, "/") == 0)
            wait_until(!exists(text("/proc/%d/task/%d", handle.pid, tid)));
        else if (*found && strcmp(found, group) != 0)
            FAIL("expected thread %d in %s, it is in %s", tid, group, found);
    }
    closedir(threads);
}

/* --- The delegate --------------------------------------------------------- */

static pid_t delegate;

static const char *
command(void)
{
    static char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 32);

    expect_true(length > 0);
    path[length] = 0;
    strcpy(strrchr(path, '/') + 1, "virt-internal");
    return path;
}

static void
start_delegate(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    const char *where = text("%s/socket", directory(getpid()));
    const char *listen = text("unix:%s", where);
    const char *policy = text("%s/policy.toml", directory(getpid()));
    const char *audit = text("%s/audit", directory(getpid()));
    const char *program = command();
    int fd;

    unlink(where);
    delegate = must(fork());
    if (delegate == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl(program, program, "delegate", "--listen", listen, "--policy",
              policy, "--audit", audit, (char *) NULL);
        _exit(127);
    }
    strcpy(address.sun_path, where);
    fd = must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    wait_until(connect(fd, (struct sockaddr *) &address, sizeof(address)) == 0);
    close(fd);
}

static void
stop_delegate(void)
{
    must(kill(delegate, SIGKILL));
    must(waitpid(delegate, NULL, 0));
}

/* Starts a delegate for all in the test's cgroup, and connects to it. */
static void
begin_with(const char *rule)
{
    FILE *policy;

    must(mkdir(directory(getpid()), 0700));
    policy = fopen(text("%s/policy.toml", directory(getpid())), "w");
    expect_true(policy != NULL);
    fputs(rule, policy);
    fclose(policy);
    start_delegate();
    expect_success(virInternalConnectDelegate(
        NULL, VIR_INTERNAL_DELEGATE_VERSION,
        text("unix:%s/socket", directory(getpid())), WAIT_MS, 0));
}

static const char *
rule(const char *host_hierarchy, const char *target, const char *name,
     const char *cpus)
{
    return text("version = 1\n[host]\ncgroup-hierarchy = \"%s\"\n"
                "[[rule]]\nname = \"test\"\n[rule.peer]\nuid = %d\n%s\n"
                "[rule.cgroup-add-threads]\n"
                "roles = [\"vcpu\", \"emulator\", \"iothread\", \"helper\"]\n"
                "cgroup = \"%s\"\n"
                "[rule.cgroup-add-threads.housekeeping]\n"
                "name = \"%s\"\n%s\n",
                host_hierarchy, geteuid(), target, top(getpid()), name, cpus);
}

static const char *
in_top(void)
{
    return text("[rule.target]\ncgroup = \"%s\"", top(getpid()));
}

static void
begin(const char *cpus)
{
    begin_with(rule(hierarchy(), in_top(), "housekeeping", cpus));
}

static void
end(void)
{
    expect_success(virInternalDisconnectDelegate(NULL));
    stop_delegate();
}

/* A call for some threads, which are to have one CPU, or none is named. */
static int
add(Handle handle, int role, const pid_t *tids, size_t ntids, int cpu,
    int *results)
{
    unsigned char map[128] = { 0 };

    if (cpu >= 0)
        map[cpu / 8] = 1 << (cpu % 8);
    return virInternalCgroupAddThreads(
        NULL, handle.pid, NULL, role, tids, NULL, ntids,
        cpu >= 0 ? map : NULL, cpu >= 0 ? (int) sizeof(map) : 0, results, 0);
}

static int
add_one(Handle handle, int role, pid_t tid, int cpu)
{
    return add(handle, role, &tid, 1, cpu, NULL);
}

#define CHILD(base) text("%s/housekeeping", base)

static bool
is_there(const char *base)
{
    return exists(at(CHILD(base), "cgroup.procs"));
}

#define expect_group(handle, tid, group) \
    expect_eq_str(group_of((handle).pid, tid), group)

static void
require_two_cpus(void)
{
    find_hierarchy();
    if (strcmp(cpus_of(getpid(), getpid()), "0-1") != 0
        && !strstr(cpus_of(getpid(), getpid()), "0-"))
        SKIP("two CPUs");
}

/* --- Tests ---------------------------------------------------------------- */

#define WITH .after = clean_up, .seconds = 900

TEST(all_threads_but_vcpus_go_to_the_child_while_they_make_others, WITH)
{
    const char *base, *before;
    Handle vm;
    int results[2];

    require_two_cpus();
    base = make_base("vm");
    vm = start_vm(base, false);
    before = strdup(cpus_of(vm.pid, vm.pid));
    begin("allowed-cpus = \"0-1\"");

    expect_success(add_one(vm, EMULATOR, vm.pid, 1));
    expect_group(vm, vm.pid, CHILD(base));
    expect_all_in(vm, CHILD(base));
    expect_eq_str(cpus_of(vm.pid, vm.pid), "1");
    expect_eq_str(cpus_of(vm.pid, vm.vm->helper), "1");

    /* They inherited it, and go back. */
    expect_group(vm, vm.vm->vcpus[0], CHILD(base));
    expect_success(add(vm, VCPU, vm.vm->vcpus, 2, 0, results));
    expect_eq_int(results[0], 0);
    expect_eq_int(results[1], 0);
    for (int i = 0; i < 2; i++) {
        expect_group(vm, vm.vm->vcpus[i], base);
        expect_eq_str(cpus_of(vm.pid, vm.vm->vcpus[i]), before);
    }

    /* They stay there, and the same again changes nothing. */
    for (int i = 0; i < 5; i++) {
        expect_success(add_one(vm, EMULATOR, vm.pid, 1));
        expect_success(add(vm, VCPU, vm.vm->vcpus, 2, 0, results));
        expect_success(add_one(vm, IOTHREAD, vm.vm->iothread, 0));
        expect_all_in(vm, CHILD(base));
        expect_group(vm, vm.vm->vcpus[0], base);
        expect_group(vm, vm.vm->vcpus[1], base);
        expect_eq_str(cpus_of(vm.pid, vm.vm->iothread), "1");
    }

    /* Others' CPUs by the emulator's request. */
    expect_success(add_one(vm, EMULATOR, vm.pid, 0));
    expect_eq_str(cpus_of(vm.pid, vm.vm->iothread), "0");
    expect_eq_str(cpus_of(vm.pid, vm.vm->vcpus[1]), before);

    expect_str_contains(
        contents(text("%s/audit", directory(getpid()))),
        text("\"before\":{\"cgroup\":\"%s\"},\"after\":{\"cgroup\":\"%s\","
             "\"cpus\":\"1\",\"there\":1}", CHILD(base), CHILD(base)));
    end_vm(vm);
    wait_until(!is_there(base));
    end();
}

TEST(threads_that_make_the_next_and_end_do_not_stay_behind, WITH)
{
    const char *base;
    Handle vm;

    require_two_cpus();
    base = make_base("vm");
    vm = start_vm_with(base, be_link);
    begin("cpus = \"1\"");
    expect_success(add(vm, VCPU, vm.vm->vcpus, 2, -1, NULL));
    for (int i = 0; i < 40; i++) {
        int made;

        must_put(at(base, "cgroup.procs"), text("%d", vm.pid));
        /* It says so when it cannot keep up. */
        while (add_one(vm, EMULATOR, vm.pid, -1) < 0)
            expect_eq_int(virInternalGetLastError()->errnum, EAGAIN);
        for (int look = 0; look < 3; look++) {
            expect_all_in(vm, CHILD(base));
            made = vm.vm->made;
            wait_until(vm.vm->made > made + WORKERS);
        }
        expect_group(vm, vm.vm->vcpus[0], base);
    }
    end_vm(vm);
    wait_until(!is_there(base));
    end();
}

TEST(vcpus_that_are_known_before_are_never_moved, WITH)
{
    const char *base;
    Handle vm;

    require_two_cpus();
    base = make_base("vm");
    vm = start_vm(base, false);
    begin("cpus = \"1\"");
    expect_success(add(vm, VCPU, vm.vm->vcpus, 2, -1, NULL));
    expect_true(!is_there(base));
    expect_success(add_one(vm, EMULATOR, vm.pid, -1));
    expect_all_in(vm, CHILD(base));
    expect_group(vm, vm.vm->vcpus[0], base);
    expect_group(vm, vm.vm->vcpus[1], base);
    /* The policy's, whatever is asked for. */
    expect_success(add_one(vm, EMULATOR, vm.pid, 0));
    expect_eq_str(cpus_of(vm.pid, vm.pid), "1");
    end_vm(vm);
    wait_until(!is_there(base));
    end();
}

TEST(iothreads_and_helpers_go_alone, WITH)
{
    const char *base;
    Handle vm;
    pid_t tids[2];
    int results[2];

    require_two_cpus();
    base = make_base("vm");
    vm = start_vm(base, true);
    begin("allowed-cpus = \"0-1\"");
    expect_error(add_one(vm, HELPER, vm.vm->helper, -1),
                 VIR_INTERNAL_ERR_FAILED, EINVAL, "has no CPUs yet");
    expect_true(!is_there(base));
    expect_success(add_one(vm, HELPER, vm.vm->helper, 1));
    expect_success(add_one(vm, IOTHREAD, vm.vm->iothread, -1));
    expect_group(vm, vm.vm->helper, CHILD(base));
    expect_group(vm, vm.vm->iothread, CHILD(base));
    expect_group(vm, vm.pid, base);
    expect_group(vm, vm.vm->vcpus[0], base);
    expect_eq_str(cpus_of(vm.pid, vm.vm->iothread), "1");

    /* One that has exited has its own result. */
    tids[0] = vm.vm->iothread;
    tids[1] = vm.vm->helper;
    vm.vm->ends_iothread = 1;
    wait_until(!exists(text("/proc/%d/task/%d", vm.pid, tids[0])));
    expect_success(add(vm, HELPER, tids, 2, -1, results));
    expect_eq_int(results[0], -ESRCH);
    expect_eq_int(results[1], 0);
    end_vm(vm);
    wait_until(!is_there(base));
    end();
}

TEST(a_delegate_that_was_restarted_goes_on_with_the_cgroup, WITH)
{
    const char *base;
    Handle vm;

    require_two_cpus();
    base = make_base("vm");
    vm = start_vm(base, false);
    begin("allowed-cpus = \"0-1\"");
    expect_success(add_one(vm, EMULATOR, vm.pid, 1));
    expect_success(add(vm, VCPU, vm.vm->vcpus, 2, -1, NULL));
    stop_delegate();
    start_delegate();
    expect_success(add_one(vm, EMULATOR, vm.pid, 0));
    expect_all_in(vm, CHILD(base));
    expect_eq_str(cpus_of(vm.pid, vm.pid), "0");
    /* It takes for vCPUs what was left in the base. */
    expect_group(vm, vm.vm->vcpus[0], base);
    expect_group(vm, vm.vm->vcpus[1], base);
    end_vm(vm);
    wait_until(!is_there(base));

    /* An empty one that nobody removed is used, too, and removed. */
    vm = start_vm(base, true);
    expect_success(add_one(vm, EMULATOR, vm.pid, 1));
    stop_delegate();
    end_vm(vm);
    expect_true(is_there(base));
    start_delegate();
    vm = start_vm(base, true);
    expect_success(add_one(vm, EMULATOR, vm.pid, 0));
    expect_group(vm, vm.pid, CHILD(base));
    expect_eq_str(cpus_of(vm.pid, vm.pid), "0");
    end_vm(vm);
    wait_until(!is_there(base));
    end();
}

TEST(cpus_that_the_policy_does_not_allow_are_refused, WITH)
{
    const char *base;
    Handle vm;

    require_two_cpus();
    base = make_base("vm");
    vm = start_vm(base, true);
    begin("allowed-cpus = \"1,900\"");
    expect_error(add_one(vm, EMULATOR, vm.pid, 0), VIR_INTERNAL_ERR_REFUSED,
                 EPERM, "CPU 0 is not one of 1,900");
    expect_error(add_one(vm, IOTHREAD, vm.vm->iothread, 0),
                 VIR_INTERNAL_ERR_REFUSED, EPERM, "CPU 0 is not one of 1,900");
    expect_error(add_one(vm, EMULATOR, vm.pid, -1), VIR_INTERNAL_ERR_REFUSED,
                 EPERM, "names no CPUs");
    expect_error(add_one(vm, EMULATOR, vm.pid, 900), VIR_INTERNAL_ERR_FAILED,
                 EINVAL, "none of the CPUs 900");
    expect_true(!is_there(base));
    expect_group(vm, vm.pid, base);

    /* Neither do they harm what is there. */
    expect_success(add_one(vm, EMULATOR, vm.pid, 1));
    expect_error(add_one(vm, EMULATOR, vm.pid, 900), VIR_INTERNAL_ERR_FAILED,
                 EINVAL, "none of the CPUs 900");
    expect_eq_str(cpus_of(vm.pid, vm.pid), "1");
    end_vm(vm);
    wait_until(!is_there(base));
    end();
}

static int
make_realtime(Handle handle, pid_t tid)
{
    return virInternalProcessSetScheduler(NULL, handle.pid, tid,
                                          VIR_INTERNAL_SCHED_FIFO, 1,
                                          VIR_INTERNAL_NO_DIRECT);
}

TEST(a_realtime_thread_must_be_kept_by_its_cpuset_wherever_that_is_set, WITH)
{
    const char *base;
    cpu_set_t cpus;
    Handle vm;

    require_two_cpus();
    base = make_base("vm");
    vm = start_vm(base, true);
    begin("cpus = \"1\"\n"
          "[rule.process-set-scheduler]\n"
          "policies = [\"fifo\"]\nmax-priority = 1\ncpus = \"1\"");
    CPU_ZERO(&cpus);
    CPU_SET(1, &cpus);
    must(sched_setaffinity(vm.vm->vcpus[0], sizeof(cpus), &cpus));
    expect_error(make_realtime(vm, vm.vm->vcpus[0]), VIR_INTERNAL_ERR_REFUSED,
                 EPERM, "the thread's cpuset has CPU 0");
    must_put(at(base, "cpuset.cpus"), "1");
    expect_success(make_realtime(vm, vm.vm->vcpus[0]));
    expect_eq_int(sched_getscheduler(vm.vm->vcpus[0]), SCHED_FIFO);
    if (!v1) {
        /* A cgroup in which the controller is not enabled. */
        must(mkdir(text("%s%s/inner", mount_point, base), 0755));
        must_put(at(base, "inner/cgroup.procs"), text("%d", vm.pid));
        expect_success(make_realtime(vm, vm.vm->vcpus[1]));
        must_put(at(base, "cpuset.cpus"), "0-1");
        expect_error(make_realtime(vm, vm.pid), VIR_INTERNAL_ERR_REFUSED,
                     EPERM, "the thread's cpuset has CPU 0");
    }
    end_vm(vm);
    end();
}

TEST(a_cgroup_of_somebody_else_with_that_name_is_left_alone, WITH)
{
    const char *base;
    Handle vm, other;

    require_two_cpus();
    base = make_base("vm");
    make_group(CHILD(base));
    vm = start_vm(base, true);
    other = start_vm(CHILD(base), true);
    begin("cpus = \"1\"");
    if (v1) {
        /* Another user's. */
        end_vm(other);
        other.pid = must(fork());
        if (other.pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (put(at(CHILD(base), "cgroup.procs"), "0") < 0
                || setuid(65534) < 0)
                _exit(1);
            for (;;)
                pause();
        }
        wait_until(strstr(contents(text("/proc/%d/status", other.pid)),
                          "Uid:\t65534"));
        expect_error(add_one(vm, EMULATOR, vm.pid, 1), VIR_INTERNAL_ERR_FAILED,
                     EBUSY, "of another user");
        must(kill(other.pid, SIGKILL));
        must(waitpid(other.pid, NULL, 0));
    } else {
        expect_error(add_one(vm, EMULATOR, vm.pid, 1), VIR_INTERNAL_ERR_FAILED,
                     EOPNOTSUPP, "threaded");
        end_vm(other);
    }
    expect_group(vm, vm.pid, base);
    expect_true(is_there(base));
    end_vm(vm);
    end();
}

TEST(a_base_that_cannot_have_threaded_children_is_an_error, WITH)
{
    const char *base, *domain;
    Handle vm, other;

    require_two_cpus();
    if (v1)
        SKIP("cpuset in cgroup v2");
    base = make_base("vm");
    domain = text("%s/domain", base);
    make_group(domain);
    vm = start_vm(base, true);
    other = start_vm(domain, true);
    begin("cpus = \"1\"");
    expect_error(add_one(vm, EMULATOR, vm.pid, -1), VIR_INTERNAL_ERR_FAILED,
                 EOPNOTSUPP, "threaded");
    expect_true(!is_there(base));
    expect_group(vm, vm.pid, base);
    end_vm(other);
    end_vm(vm);
    end();
}

TEST(the_root_is_a_base_where_a_rule_names_it, WITH)
{
    Handle vm;
    const char *child;

    require_two_cpus();
    child = text("/%s", name_in_root(getpid()));
    vm = start_vm("", true);
    begin_with(rule(hierarchy(), text("[rule.target]\ncgroup = \"/\"\nuid = %d",
                                      geteuid()),
                    child + 1, "cpus = \"1\""));
    expect_success(add_one(vm, EMULATOR, vm.pid, -1));
    expect_all_in(vm, child);
    expect_eq_str(cpus_of(vm.pid, vm.pid), "1");
    expect_success(add(vm, VCPU, vm.vm->vcpus, 2, -1, NULL));
    expect_group(vm, vm.vm->vcpus[0], "/");
    end_vm(vm);
    wait_until(!exists(at(child, "cgroup.procs")));
    end();
}

TEST(the_root_is_no_base_where_no_rule_names_it, WITH)
{
    Handle vm;

    require_two_cpus();
    vm = start_vm("", true);
    begin_with(rule(hierarchy(), "", name_in_root(getpid()), "cpus = \"1\""));
    expect_error(add_one(vm, EMULATOR, vm.pid, -1), VIR_INTERNAL_ERR_REFUSED,
                 EPERM, "the peer's own cgroup is the root");
    expect_true(!exists(at(text("/%s", name_in_root(getpid())), "cgroup.procs")));
    expect_group(vm, vm.pid, "/");
    end_vm(vm);
    end();
}

TEST(a_base_outside_of_the_rules_target_is_refused, WITH)
{
    const char *base, *unified;
    Handle vm;

    require_two_cpus();
    if (!v1 || !exists("/sys/fs/cgroup/unified/cgroup.procs"))
        SKIP("cgroup v1 and v2 at once");
    /* In v2 the process is where the rule has its targets, in cpuset not. */
    base = make_base("vm");
    vm = start_vm(base, true);
    unified = text("/sys/fs/cgroup/unified%s", top(getpid()));
    must(mkdir(unified, 0755));
    must_put(text("%s/cgroup.procs", unified), text("%d", vm.pid));
    begin_with(rule("v2", in_top(), "housekeeping", "cpus = \"1\""));
    expect_success(add_one(vm, EMULATOR, vm.pid, -1));
    must_put(at("", "cgroup.procs"), text("%d", vm.pid));
    expect_error(add_one(vm, EMULATOR, vm.pid, -1), VIR_INTERNAL_ERR_REFUSED,
                 EPERM, "the VM's cgroup in the hierarchy cpuset is /, which");
    expect_group(vm, vm.pid, "/");
    end_vm(vm);
    wait_until(!is_there(base));
    end();
}

typedef struct {
    Handle vm;
    int cpu;
    int failed;
} Caller;

static void *
call_often(void *opaque)
{
    Caller *caller = opaque;
    Handle vm = caller->vm;

    for (int i = 0; i < 10; i++) {
        caller->failed += add_one(vm, EMULATOR, vm.pid, caller->cpu) != 0;
        caller->failed += add(vm, VCPU, vm.vm->vcpus, 2, -1, NULL) != 0;
    }
    return NULL;
}

TEST(two_vms_at_once_have_each_its_own, WITH)
{
    const char *bases[2];
    Caller callers[2];
    pthread_t threads[2];

    require_two_cpus();
    for (int i = 0; i < 2; i++) {
        bases[i] = make_base(text("vm-%d", i));
        callers[i] = (Caller) { start_vm(bases[i], false), i, 0 };
    }
    begin("allowed-cpus = \"0-1\"");
    for (int i = 0; i < 2; i++)
        expect_eq_int(pthread_create(&threads[i], NULL, call_often,
                                     &callers[i]), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) {
        Handle vm = callers[i].vm;

        expect_eq_int(callers[i].failed, 0);
        expect_all_in(vm, CHILD(bases[i]));
        expect_eq_str(cpus_of(vm.pid, vm.pid), text("%d", i));
        expect_group(vm, vm.vm->vcpus[0], bases[i]);
    }
    end_vm(callers[0].vm);
    wait_until(!is_there(bases[0]));
    expect_all_in(callers[1].vm, CHILD(bases[1]));
    end_vm(callers[1].vm);
    wait_until(!is_there(bases[1]));
    end();
}

TEST(vms_of_one_cgroup_have_one_child_until_the_last_is_gone, WITH)
{
    const char *base;
    Handle one, other;

    require_two_cpus();
    base = make_base("vms");
    one = start_vm(base, true);
    other = start_vm(base, true);
    begin("allowed-cpus = \"0-1\"");
    expect_success(add_one(one, EMULATOR, one.pid, 1));
    expect_group(other, other.pid, base);
    expect_error(add_one(other, EMULATOR, other.pid, 0),
                 VIR_INTERNAL_ERR_FAILED, EBUSY, "has the CPUs 1 for it");
    expect_eq_str(cpus_of(one.pid, one.pid), "1");
    expect_group(other, other.pid, base);
    expect_success(add_one(other, EMULATOR, other.pid, 1));
    expect_all_in(one, CHILD(base));
    expect_all_in(other, CHILD(base));
    end_vm(one);
    /* It is not there for one any more: the other's CPUs can be set. */
    wait_until(add_one(other, EMULATOR, other.pid, 0) == 0);
    expect_group(other, other.pid, CHILD(base));
    end_vm(other);
    wait_until(!is_there(base));
    end();
}

TEST(with_a_group_of_the_callers_there_is_no_housekeeping, WITH)
{
    const char *base, *group;
    Handle vm;

    require_two_cpus();
    base = make_base("vm");
    group = text("%s/callers", base);
    make_group(group);
    if (!v1)
        must_put(at(group, "cgroup.type"), "threaded");
    vm = start_vm(base, true);
    begin("cpus = \"1\"");
    expect_success(virInternalCgroupAddThreads(
        NULL, vm.pid, text("%s%s", mount_point, group), EMULATOR,
        &vm.vm->helper, NULL, 1, NULL, 0, NULL, 0));
    expect_group(vm, vm.vm->helper, group);
    expect_group(vm, vm.pid, base);
    expect_true(!is_there(base));
    end_vm(vm);
    end();
}

TEST(threads_of_another_process_are_not_moved, WITH)
{
    const char *base;
    Handle vm, other;

    require_two_cpus();
    base = make_base("vm");
    vm = start_vm(base, true);
    other = start_vm(base, true);
    begin("cpus = \"1\"");
    expect_error(add_one(vm, IOTHREAD, other.vm->iothread, -1),
                 VIR_INTERNAL_ERR_INVALID_ARG, EINVAL, "does not belong");
    expect_group(other, other.vm->iothread, base);
    expect_true(!is_there(base));
    end_vm(vm);
    end_vm(other);
    end();
}
