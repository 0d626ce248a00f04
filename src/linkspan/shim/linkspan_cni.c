/* The CNI plugin that a runtime executes: it carries the call to the agent and prints what the agent says.
 * One POST /cni over the agent's unix socket: the CNI_* variables as KEY=VALUE\0...\0\0, then stdin. The container's
 * namespace is opened here, for its path may lead nowhere in the agent's own mount namespace; the agent reopens the
 * descriptor by /proc/PID/fd/N while this process waits. VERSION, and the answers when the agent is down, are given
 * here; a DEL is then left in a queue folder and counts as done. linkspan_cni.py is the same program in Python. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#define PLAIN "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"

enum { LIMIT = 1 << 20, ROOM = 256 << 10, ANSWER = 4 << 20 };
enum { ADD, CHECK, DEL, GC, STATUS, VERSION, UNKNOWN };
static const char *const COMMANDS[] = {"ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"};
static const char *const VARIABLES[] = {"CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"};
static const char VERSIONS[] = "[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]";
static const char UNFIT[] = "has a socket, name or cniVersion that is too long or has a \\ in it";
static const char DOWN[] = "is `linkspan agent` running? `systemctl status linkspan` shows it";
struct wanted { const char *key; char *to; size_t room; };
static char request[ROOM + LIMIT + 1], answer[ANSWER + 1]; /* both end in a 0, whatever they hold */
static char *const conf = request + ROOM; /* the head is set right before it, so that one send takes all */
static size_t conf_size;
static char version[16], network[132], why[200], queued[200];
static struct sockaddr_un agent = {.sun_family = AF_UNIX};
static void on_alarm(int number) { (void)number; } /* only there to break a blocking call */
static const char *reason(void) { return errno == EINTR ? "no answer in time" : strerror(errno); }
static const char *spoken(void) /* the version in which to answer: the one asked for, where it is one of ours */
{
    return strlen(version) == 5 && !strpbrk(version, "\",") && strstr(VERSIONS, version) ? version : "1.1.0";
}

static char *quoted(char *to, size_t room, const char *from)
{
    char *at = to, *end = to + room - 9;
    for (*at++ = '"'; *from && at < end; from++)
        if ((unsigned char)*from < 0x20 || *from == '"' || *from == '\\' || *from == 0x7f)
            at += sprintf(at, "\\u%04x", *from);
        else
            *at++ = (unsigned char)*from < 0x80 ? *from : '?'; /* JSON is UTF-8, and these bytes may not be */
    strcpy(at, "\"");
    return to;
}

__attribute__((format(printf, 3, 4))) static int fail(int code, const char *hint, const char *format, ...)
{
    char text[1000], message[6100], details[1000];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    dprintf(1, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":%s,\"details\":%s}\n", spoken(), code,
            quoted(message, sizeof message, text), quoted(details, sizeof details, hint));
    return 1;
}

/* Copies what stands between the quotes of a JSON string; -1 where it does not fit or needs more than this. */
static int decoded(const char *from, const char *end, char *to, size_t room)
{
    for (; from < end; *to++ = *from++)
        if ((*from == '\\' && !memchr("\"\\/", *++from, 3)) || !*from || !--room)
            return -1;
    *to = 0;
    return 0;
}

/* Finds the wanted strings of the object's top level; returns what is wrong with the text, or NULL. */
static const char *scan(const char *at, const char *end, const struct wanted *wanted)
{
    char key[16] = "";
    int depth = 0, value = 0;
    at += strspn(at, " \t\r\n");
    if (*at != '{')
        return "is not a JSON object";
    for (; at < end; at++) {
        if (*at == '"') {
            const char *start = ++at;
            while (at < end && *at != '"')
                at += *at == '\\' ? 2 : 1;
            if (at >= end)
                return "is cut off within a string";
            if (depth == 1 && !value && decoded(start, at, key, sizeof key))
                *key = 0; /* longer than any of ours */
            for (const struct wanted *w = wanted; w && w->key && depth == 1 && value; w++)
                if (!strcmp(key, w->key) && decoded(start, at, w->to, w->room))
                    return UNFIT;
        } else if (*at == '{' || *at == '[') {
            depth++;
        } else if ((*at == '}' || *at == ']') && !--depth) {
            return at + 1 + strspn(at + 1, " \t\r\n") == end ? NULL : "has text after its end";
        } else if (depth == 1 && (*at == ':' || *at == ',')) {
            value = *at == ':';
        }
    }
    return "is cut off";
}

static int is_name(const char *text) /* the rule for container ids and networks */
{
    return *text && !strchr("_.-", *text) && !text[strspn(text, PLAIN)] && strlen(text) <= 128;
}

static int is_ifname(const char *text) /* ASCII, but no space, / and : */
{
    return !text[strspn(text, PLAIN "!\"#$%&'()*+,;<=>?@[\\]^`{|}~")] && strlen(text) <= 15 &&
           strcmp(text, ".") && strcmp(text, "..");
}

/* Writes the head before the configuration; returns where the request starts, NULL where it has no room. */
static char *headed(const char *extra, size_t extra_size)
{
    char head[120], *start = conf - 1;
    *start = 0;
    memcpy(start -= extra_size, extra, extra_size);
    for (char **entry = environ; *entry; entry++) {
        size_t size = strncmp(*entry, "CNI_", 4) ? 0 : strlen(*entry) + 1;
        if (size + sizeof head > (size_t)(start - request))
            return NULL;
        memcpy(start -= size, *entry, size);
    }
    int size = sprintf(head, "POST /cni HTTP/1.0\r\nContent-Length: %zu\r\n\r\n", (size_t)(conf + conf_size - start));
    return memcpy(start - size, head, (size_t)size);
}

/* Returns the status of a whole answer and its body, or 0 and the cause in why. */
static int post(const char *at, const char **body)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), status = 0;
    ssize_t size = 0, n = 0;
    if (fd < 0 || connect(fd, (struct sockaddr *)&agent, sizeof agent))
        return snprintf(why, sizeof why, "%s", reason()), close(fd), 0;
    while (at < conf + conf_size && (n = send(fd, at, (size_t)(conf + conf_size - at), MSG_NOSIGNAL)) > 0)
        at += n; /* where this ends early it may have answered before it read all */
    while (size < ANSWER && (n = recv(fd, answer + size, (size_t)(ANSWER - size), 0)) > 0)
        size += n;
    snprintf(why, sizeof why, "%s", n < 0 ? reason() : "it closed the connection before its answer was whole");
    close(fd);
    answer[size] = 0;
    const char *end = strstr(answer, "\r\n\r\n"), *length = strcasestr(answer, "\r\nContent-Length:");
    if (!end || !length || length > end || sscanf(answer, "HTTP/1.%*1[01] %d", &status) != 1 ||
        (size_t)(answer + size - end - 4) != strtoul(length + 17, NULL, 10))
        return 0;
    *body = end + 4;
    snprintf(why, sizeof why, "HTTP status %d without a CNI answer", status);
    return (**body ? !scan(*body, answer + size, NULL) : status == 200) ? status : 0;
}

/* Leaves a removal for the agent's next start; returns -1 with errno where it cannot. */
static int enqueue(const char *id, const char *ifname, const struct timespec *when)
{
    char boot[40] = "", name[100], temporary[250];
    long long now = when->tv_sec * 1000000000LL + when->tv_nsec;
    int at = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (at < 0 || read(at, boot, 36) != 36 || close(at))
        return -1;
    char *slash = strrchr(strcpy(queued, agent.sun_path), '/');
    strcpy(slash ? slash + 1 : queued, "queue/");
    for (char *part = queued + 1; (part = strchr(part, '/')); *part++ = '/')
        if (*part = 0, mkdir(queued, 0700) && errno != EEXIST)
            return -1;
    sprintf(temporary, "%s.%lld-%d.tmp", queued, now, getpid());
    sprintf(strchr(queued, 0), "%lld-%d.json", now, getpid());
    at = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (at < 0 || dprintf(at, "{\"container_id\":\"%s\",\"ifname\":%s,\"network\":\"%s\",\"boot_id\":\"%s\","
                          "\"boottime_ns\":%lld}\n", id, quoted(name, sizeof name, ifname), network, boot, now) < 0 ||
        fsync(at) || close(at) || rename(temporary, queued))
        return at < 0 ? -1 : (unlink(temporary), -1); /* errno is that of the first cause: unlink succeeds here */
    return 0;
}

/* Checks the environment; returns 0, or 1 when it has printed what is wrong. */
static int refused(int command, char **value)
{
    char missing[80] = "";
    for (int i = 0; i < 4; i++) /* VARIABLES is in such an order that ever fewer commands need them */
        if (!*value[i] && (i == 0 || command < DEL || (command == DEL && i < 3)))
            strcat(strcat(missing, " "), VARIABLES[i]);
    if (*missing)
        return fail(4, "the runtime sets them for each call", "missing in the environment:%s", missing);
    if (command == UNKNOWN)
        return fail(4, "use ADD, CHECK, DEL, GC, STATUS or VERSION", "unknown CNI_COMMAND %s", value[0]);
    if (command <= DEL && !is_name(value[1]))
        return fail(4, "letters, digits, _ . -, at most 128", "CNI_CONTAINERID %s is no container id", value[1]);
    return command <= DEL && !is_ifname(value[2]) &&
           fail(4, "1 to 15 characters, eth0 for example", "CNI_IFNAME %s is no interface name", value[2]);
}

int main(void)
{
    char extra[400], *start, *value[4], *path = getenv("LINKSPAN_SOCKET") ?: "";
    const char *body = "", *wrong, *patience = getenv("LINKSPAN_TIMEOUT");
    struct wanted wanted[] = {{"cniVersion", version, sizeof version}, {"name", network, sizeof network},
                              {"socket", agent.sun_path, sizeof agent.sun_path}, {0}};
    struct timespec now;
    struct stat own = {0};
    int command = ADD, fd, n = 1, size = 0, status, seconds = patience && atoi(patience) > 0 ? atoi(patience) : 120;
    clock_gettime(CLOCK_BOOTTIME, &now);
    for (int i = 0; i < 4; i++)
        value[i] = getenv(VARIABLES[i]) ?: "";
    while (command < UNKNOWN && strcmp(value[0], COMMANDS[command]))
        command++;
    if (command != VERSION && refused(command, value))
        return 1;
    /* Every blocking call ends with EINTR in time; the timer repeats, for it may fire just before such a call. */
    sigaction(SIGALRM, &(struct sigaction){.sa_handler = on_alarm}, NULL);
    setitimer(ITIMER_REAL, &(struct itimerval){{1, 0}, {command == VERSION ? 0 : seconds, 200000}}, NULL);
    signal(SIGPIPE, SIG_IGN);
    for (; n > 0 && conf_size <= LIMIT; conf_size += (size_t)(n > 0 ? n : 0))
        n = (int)read(0, conf + conf_size, LIMIT + 1 - conf_size);
    wrong = n < 0 ? "cannot be read to its end" : conf_size > LIMIT ? "is larger than 1 MiB" : NULL;
    wrong = wrong ? wrong : scan(conf, conf + conf_size, wanted);
    if (command == VERSION) /* it needs nothing from stdin, and waits no longer than 0.2 s for it */
        return dprintf(1, "{\"cniVersion\":\"%s\",\"supportedVersions\":%s}\n", spoken(), VERSIONS) < 0;
    if (wrong)
        return fail(n < 0 ? 5 : wrong == UNFIT ? 7 : 6, "it must be one JSON object", "the network configuration on stdin %s", wrong);
    if (!is_name(network))
        return fail(7, "set it to a linkspan network", "the configuration's name \"%s\" is not valid", network);
    if (strlen(path) >= sizeof agent.sun_path)
        return fail(4, "at most 107 bytes", "LINKSPAN_SOCKET %s is too long", path);
    if (*path || !*agent.sun_path)
        strcpy(agent.sun_path, *path ? path : "/run/linkspan/agent.sock");
    if (*value[3] && (fd = open(value[3], O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)) >= 0)
        size = sprintf(extra, "LINKSPAN_NETNS_FD=%d", fd) + 1;
    else if (*value[3])
        size = sprintf(extra, "LINKSPAN_NETNS_ERROR=%s", strerror(errno)) + 1;
    stat("/proc/self/ns/net", &own);
    size += sprintf(extra + size, "LINKSPAN_SELF_NETNS=%lu", (unsigned long)own.st_ino) + 1;
    if (!(start = headed(extra, (size_t)size)))
        return fail(4, "", "the CNI_* variables are larger than 256 KiB");
    if (!(status = post(start, &body)) && command == DEL) {
        if (enqueue(value[1], value[2], &now))
            return fail(11, DOWN, "agent at %s: %s; queue %s: %s", agent.sun_path, why, queued, strerror(errno));
        dprintf(2, "linkspan: agent at %s: %s; removal queued as %s\n", agent.sun_path, why, queued);
        if (post(start, &body) == 200) /* it may have come up, and looked, before the file was there */
            unlink(queued);
        return 0;
    }
    if (!status)
        return fail(command == STATUS ? 50 : 11, DOWN, "agent at %s: %s", agent.sun_path, why);
    return fputs(body, stdout) < 0 || fflush(stdout) || status != 200;
}
