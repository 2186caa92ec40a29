/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "hyp/qemu/args.h"
#include "hyp/qemu/dirty.h"
#include "hyp/qemu/machine.h"
#include "hyp/qemu/vm.h"

/* Says whether a word stands in the "flags" line of /proc/cpuinfo. */
static bool cpu_has_flag(const char *flag)
{
    FILE *info = fopen("/proc/cpuinfo", "re");
    size_t n = strlen(flag);
    bool found = false;
    char line[8192];

    if (!info)
        return false;
    while (fgets(line, sizeof(line), info)) {
        if (strncmp(line, "flags", 5) != 0)
            continue;
        for (const char *at = line; !found && (at = strstr(at, flag)); at += n)
            found = at[-1] == ' ' && (at[n] == ' ' || at[n] == '\n' || at[n] == 0);
        break; /* the first CPU speaks for all */
    }
    (void)fclose(info); /* only read */
    return found;
}

/* Without vmx or svm, KVM may exist and yet interpret the guest's kernel code, far slower than TCG
 * translates it: so the device file alone does not decide. */
static int resolve_accel(struct vm_spec *spec, struct err *err)
{
    CLEANUP_FD int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int kvm_errno = errno;

    if (!spec->accel[0])
        strcpy(spec->accel,
               kvm >= 0 && (cpu_has_flag("vmx") || cpu_has_flag("svm")) ? "kvm" : "tcg");
    if (strcmp(spec->accel, "kvm") == 0 && kvm < 0)
        return err_sys(err, -kvm_errno, "accel kvm: /dev/kvm");
    if (strcmp(spec->accel, "kvm") != 0 && strcmp(spec->accel, "tcg") != 0)
        return err_set(err, -EINVAL, "accel %s: kvm and tcg are known", spec->accel);
    if (strcmp(spec->accel, "tcg") == 0 && strncmp(spec->cpu_model, "host", 4) == 0)
        return err_set(err, -EINVAL, "cpu model %s needs kvm, but the accelerator is tcg",
                       spec->cpu_model);
    return 0;
}

static int check_files(const struct vm_spec *spec, struct err *err)
{
    const struct {
        const char *what, *path;
    } files[] = {{"kernel", spec->kernel}, {"initrd", spec->initrd}, {"firmware", spec->firmware}};

    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        if (files[i].path[0] && access(files[i].path, R_OK) < 0)
            return err_sys(err, -errno, "%s %s", files[i].what, files[i].path);
    }
    return 0;
}

int vm_preflight(struct vm_spec *spec, const char *emulator, struct err *err)
{
    char machine[sizeof(spec->machine)];
    unsigned ways;
    int r = args_check_extra(spec, err);

    if (r == 0)
        r = check_files(spec, err);
    if (r == 0)
        r = dirty_probe_kernel(&ways, err);
    if (r == 0)
        r = qemu_check_version(emulator, err);
    if (r == 0)
        r = qemu_resolve_machine(emulator, spec->machine, machine, sizeof(machine), err);
    if (r == 0)
        r = resolve_accel(spec, err);
    if (r == 0)
        memcpy(spec->machine, machine, sizeof(machine));
    return r;
}
