/* SPDX-License-Identifier: Apache-2.0 */
/* What a vCPU writes is seen in each way of tracking: KVM writes for it, as the kernel. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hyp/qemu/dirty.h"
#include "hyp/qemu/uapi.h"
#include "unit.h"

enum { RAM_BYTES = 1 << 20, CODE_AT = 0x1000, FIRST_PAGE = 0x20, WRITTEN = 16, LIMIT_S = 20 };

/* Writes a byte to each of WRITTEN pages, then halts. Real mode. */
static const uint8_t code[] = {
    0xb9, WRITTEN, 0x00,                   /*    mov cx, WRITTEN */
    0xb8, 0x00,    0x20,                   /*    mov ax, FIRST_PAGE * 0x100 */
    0x8e, 0xc0,                            /* 1: mov es, ax */
    0x26, 0xc6,    0x06, 0x00, 0x00, 0x55, /* mov byte es:[0], 0x55 */
    0x05, 0x00,    0x01,                   /*    add ax, 0x100 */
    0x49,                                  /*    dec cx */
    0x75, 0xf2,                            /*    jnz 1b */
    0xf4,                                  /*    hlt */
};

/* Runs the code in a VM with that memory. Returns why it stopped. */
static uint32_t run_vcpu(int kvm, uint8_t *ram)
{
    struct kvm_userspace_memory_region region = {
        .memory_size = RAM_BYTES,
        .userspace_addr = (uintptr_t)ram,
    };
    struct kvm_regs regs = {.rip = CODE_AT, .rflags = 2};
    int vm = ioctl(kvm, KVM_CREATE_VM, 0), cpu;
    long size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_sregs sregs;
    struct kvm_run *run;
    uint32_t reason;

    assert_true(vm >= 0 && size > 0);
    assert_int_equal(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
    cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    assert_true(cpu >= 0);
    run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    assert_true(run != MAP_FAILED);
    assert_int_equal(ioctl(cpu, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = sregs.cs.selector = 0;
    assert_int_equal(ioctl(cpu, KVM_SET_SREGS, &sregs), 0);
    assert_int_equal(ioctl(cpu, KVM_SET_REGS, &regs), 0);
    assert_int_equal(ioctl(cpu, KVM_RUN, 0), 0);
    reason = run->exit_reason;
    (void)munmap(run, (size_t)size);
    close(cpu);
    close(vm);
    return reason;
}

static int uffd(bool wanted, int flags)
{
    return wanted ? (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags) : -1;
}

static void sees_a_vcpu(int kvm, unsigned way)
{
    int fd = memfd_create("us-dirty-kvm", MFD_CLOEXEC);
    struct dirty_target target = {
        .pid = getpid(),
        .n_bytes = RAM_BYTES,
        .async_fd = uffd(way & DIRTY_ASYNC, UFFD_USER_MODE_ONLY),
        .sync_fd = uffd(way & DIRTY_SYNC, 0),
    };
    struct run_list list = {0};
    struct dirty *d;
    struct err err;
    uint8_t *ram;

    assert_int_equal(ftruncate(fd, RAM_BYTES), 0);
    ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(ram != MAP_FAILED);
    memcpy(ram + CODE_AT, code, sizeof(code));
    target.base = (uintptr_t)ram;
    if (dirty_start(&target, &d, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(run_vcpu(kvm, ram), KVM_EXIT_HLT);
    assert_int_equal(dirty_take(d, &list), 0);
    assert_int_equal(list.n, 1);
    assert_int_equal(list.runs[0].first, FIRST_PAGE);
    assert_int_equal(list.runs[0].count, WRITTEN);
    for (size_t i = 0; i < WRITTEN; i++)
        assert_int_equal(ram[(FIRST_PAGE + i) * VM_PAGE_BYTES], 0x55);
    run_list_free(&list);
    dirty_free(d);
    (void)munmap(ram, RAM_BYTES);
    close(fd);
}

static void sees_writes_of_vcpus(void **state)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    struct err err;
    unsigned ways;

    if (kvm < 0 || dirty_probe_kernel(&ways, &err) < 0)
        skip();
    for (unsigned way = DIRTY_ASYNC; way <= DIRTY_BOTH; way++)
        if ((way & ways) == way)
            sees_a_vcpu(kvm, way);
    close(kvm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sees_writes_of_vcpus),
    };

    (void)alarm(LIMIT_S);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
