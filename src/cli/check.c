/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "host/preflight.h"
#include "host/vmfile.h"

static error_t parse_check(int key, char *arg, struct argp_state *state)
{
    return cli_argument(key, arg, state, state->input);
}

static void print_disks(const struct vm_spec *spec)
{
    for (uint32_t i = 0; i < spec->n_disks; i++) {
        const struct vm_disk *disk = &spec->disks[i];
        char size[32];

        view_size((double)disk->size_bytes, size, sizeof(size));
        printf("  disk %u: %s, %s, %s%s\n", i, disk->path, size,
               disk->cache == VM_CACHE_WRITETHROUGH ? "writethrough" : "writeback",
               disk->read_only ? ", read-only" : "");
    }
}

/* Looks at the file and at this host; asks nobody, so it works without understudyd. What the
 * standby would refuse, only the standby knows. */
int cli_check(int argc, char **argv)
{
    static struct host_config config;
    static struct preflight preflight;
    CLEANUP_FREE struct vm_spec *spec = malloc(sizeof(*spec));
    const char *file = NULL;
    struct err err;

    cli_parse("check", argc, argv, NULL, parse_check, &file);
    if (!spec)
        return cli_fail("out of memory");
    if (vmfile_load(file, spec, &err) < 0)
        return cli_fail("%s", err.text);
    if (cli_config(&config) < 0)
        return CLI_FAILED;
    preflight_check(spec, &config, &hyp_qemu, PREFLIGHT_PRIMARY, &preflight);
    for (unsigned i = 0; i < preflight.n; i++)
        cli_fail("%s: %s: %s", file, spec->name, preflight.problem[i].text);
    if (preflight.n > 0)
        return CLI_FAILED;
    printf("%s: %s can start on %s: %s, %s, %" PRIu64 " MiB, %s%s\n", file, spec->name, config.name,
           spec->machine, spec->accel, spec->memory_bytes >> 20,
           spec->protect.standby[0] ? "to be protected by " : "not protected",
           spec->protect.standby);
    print_disks(spec);
    return CLI_OK;
}
