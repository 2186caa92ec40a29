/* SPDX-License-Identifier: Apache-2.0 */
#include "hyp-options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/vm_spec.h"
#include "hyp-guest.h"

static void check(struct hyp_options *o)
{
    if (o->pages == 0)
        o->pages = o->disks > 0 ? HYP_BOOT_PAGES_MAX / 2 : 1024;
    if (o->pages & (o->pages - 1) || o->memory <= o->pages / 256 + 1 ||
        (o->disks > 0 && o->pages > HYP_BOOT_PAGES_MAX)) {
        fprintf(stderr,
                "hyp-smoke: --pages is a power of two that fits into --memory, with disks "
                "at most %d\n",
                HYP_BOOT_PAGES_MAX);
        exit(2);
    }
    if (o->epochs == 0 || o->nics > VM_NICS_MAX || o->disks > VM_DISKS_MAX) {
        fprintf(stderr, "hyp-smoke: --epochs 1 or more, --nics up to %d, --disks up to %d\n",
                VM_NICS_MAX, VM_DISKS_MAX);
        exit(2);
    }
}

void hyp_options_parse(int argc, char **argv, struct hyp_options *ret_options)
{
    struct hyp_options o = {
        .emulator = "qemu-system-x86_64",
        .epochs = 200,
        .interval = 10,
        .memory = 256,
        .cpus = 1,
        .nics = 1,
        .delay = 500,
    };
    const struct {
        const char *name;
        const char **text;
        unsigned int *number;
    } options[] = {
        {"emulator", &o.emulator, NULL},   {"kernel", &o.kernel, NULL},
        {"initrd", &o.initrd, NULL},       {"append", &o.append, NULL},
        {"firmware", &o.firmware, NULL},   {"cpu", &o.cpu, NULL},
        {"machine", &o.machine, NULL},     {"accel", &o.accel, NULL},
        {"epochs", NULL, &o.epochs},       {"interval", NULL, &o.interval},
        {"memory", NULL, &o.memory},       {"cpus", NULL, &o.cpus},
        {"nics", NULL, &o.nics},           {"disks", NULL, &o.disks},
        {"pages", NULL, &o.pages},         {"delay", NULL, &o.delay},
        {"alternate", NULL, &o.alternate}, {"transitional", NULL, &o.transitional},
    };
    struct option names[sizeof(options) / sizeof(options[0]) + 1] = {0};
    int r, i;

    for (size_t k = 0; k < sizeof(options) / sizeof(options[0]); k++)
        names[k] = (struct option){options[k].name, required_argument, NULL, 1};
    while ((r = getopt_long(argc, argv, "", names, &i)) == 1) {
        if (options[i].text)
            *options[i].text = optarg;
        else
            *options[i].number = (unsigned int)strtoul(optarg, NULL, 0);
    }
    if (r != -1)
        exit(2);
    check(&o);
    *ret_options = o;
}
