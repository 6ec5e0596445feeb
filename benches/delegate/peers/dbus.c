/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * dbus server ADDRESS
 *     a service with an empty method, on the bus at ADDRESS. Prints "ready".
 * dbus client ADDRESS
 *     calls it; see rounds.h for what it reads and prints
 */

#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>

#include "../rounds.h"

#define NAME "bench.Empty"
#define PATH "/bench"

static sd_bus *bus;

static void must(const char *what, int returned)
{
    if (returned < 0)
        errx(EXIT_FAILURE, "%s: %s", what, strerror(-returned));
}

static int nothing(sd_bus_message *message, void *opaque, sd_bus_error *error)
{
    (void)opaque;
    (void)error;
    return sd_bus_reply_method_return(message, "");
}

static const sd_bus_vtable methods[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_METHOD("Call", "", "", nothing, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_VTABLE_END,
};

static void serve(void)
{
    must("sd_bus_add_object_vtable",
         sd_bus_add_object_vtable(bus, NULL, PATH, NAME, methods, NULL));
    must("sd_bus_request_name", sd_bus_request_name(bus, NAME, 0));
    puts("ready");
    fflush(stdout);
    for (;;) {
        int returned = sd_bus_process(bus, NULL);

        must("sd_bus_process", returned);
        if (returned == 0)
            must("sd_bus_wait", sd_bus_wait(bus, UINT64_MAX));
    }
}

static void call(int thread)
{
    sd_bus_message *reply = NULL;

    (void)thread;
    must("sd_bus_call_method",
         sd_bus_call_method(bus, NAME, PATH, NAME, "Call", NULL, &reply, ""));
    sd_bus_message_unref(reply);
}

int main(int argc, char **argv)
{
    const struct caller caller = { .call = call };

    if (argc != 3)
        errx(EXIT_FAILURE, "see the comment in dbus.c");
    must("sd_bus_new", sd_bus_new(&bus));
    must("sd_bus_set_address", sd_bus_set_address(bus, argv[2]));
    must("sd_bus_set_bus_client", sd_bus_set_bus_client(bus, 1));
    must("sd_bus_start", sd_bus_start(bus));
    if (strcmp(argv[1], "server") == 0)
        serve();
    answer_rounds(&caller, 1);
    return EXIT_SUCCESS;
}
