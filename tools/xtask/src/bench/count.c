/* A plugin of QEMU's emulation: counts the instructions executed at addresses from=..to, and says
 * how many it were whenever the guest passes a marker (docs/measurements.md).
 *
 * A marker is a long NOP whose displacement nobody else uses: it costs nothing, needs no device,
 * and works at any level of nesting. Compiled by xtask with PLUGIN_API of the QEMU at hand:
 * interface versions 1 (6.0 to 8.2), 2 (9.0) and 3 (from 9.1); only what all have is used, but for
 * the way an instruction's bytes are had. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum callback_flags { NO_REGISTERS = 0 };
typedef void (*on_translation)(plugin_id, struct qemu_plugin_tb *);
typedef void (*on_execution)(unsigned cpu, void *data);

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_translation);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, on_execution,
                                                 enum callback_flags, void *data);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, on_execution,
                                                   enum callback_flags, void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
#if PLUGIN_API >= 3
extern size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
#else
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
#endif

__attribute__((visibility("default"))) int qemu_plugin_version = PLUGIN_API;

/* nopl N(%rax): the opcode, then N as 32 bits. tests/guests/src/marker.rs has the same. */
static const unsigned char MARKER[] = {0x0f, 0x1f, 0x80};
enum { BEGIN = 0x504e0001, END = 0x504e0002 };
enum { MARKER_BYTES = 7 };

/* A piece of code; never freed, as what it counted counts. */
struct block {
    uint64_t address, instructions, executed;
    struct block *next;
};

static struct block *blocks;
static uint64_t from, to = UINT64_MAX, counted, before;
static bool within;
static FILE *out;
static const char *profile;

static void execute(unsigned cpu, void *data)
{
    struct block *block = data;
    (void)cpu;
    __atomic_fetch_add(&counted, block->instructions, __ATOMIC_RELAXED);
    if (__atomic_load_n(&within, __ATOMIC_RELAXED))
        __atomic_fetch_add(&block->executed, 1, __ATOMIC_RELAXED);
}

static void begin(unsigned cpu, void *data)
{
    (void)cpu, (void)data;
    before = __atomic_load_n(&counted, __ATOMIC_RELAXED);
    __atomic_store_n(&within, true, __ATOMIC_RELAXED);
}

/* Where the instructions between markers were, by piece of code. QEMU may be killed at any time. */
static void write_profile(void)
{
    FILE *file = fopen(profile, "w");
    if (!file)
        return;
    for (struct block *block = __atomic_load_n(&blocks, __ATOMIC_ACQUIRE); block; block = block->next)
        if (block->executed)
            fprintf(file, "%" PRIx64 " %" PRIu64 "\n", block->address,
                    block->instructions * block->executed);
    fclose(file);
}

static void end(unsigned cpu, void *data)
{
    (void)cpu, (void)data;
    __atomic_store_n(&within, false, __ATOMIC_RELAXED);
    fprintf(out, "%" PRIu64 "\n", __atomic_load_n(&counted, __ATOMIC_RELAXED) - before);
    fflush(out);
    if (profile)
        write_profile();
}

/* The number in a marker, or 0. */
static uint32_t marker(const struct qemu_plugin_insn *instruction)
{
    unsigned char bytes[MARKER_BYTES];
    uint32_t number;
    if (qemu_plugin_insn_size(instruction) != MARKER_BYTES)
        return 0;
#if PLUGIN_API >= 3
    if (qemu_plugin_insn_data(instruction, bytes, sizeof bytes) != sizeof bytes)
        return 0;
#else
    memcpy(bytes, qemu_plugin_insn_data(instruction), sizeof bytes);
#endif
    if (memcmp(bytes, MARKER, sizeof MARKER) != 0)
        return 0;
    memcpy(&number, bytes + sizeof MARKER, sizeof number);
    return number;
}

static void translate(plugin_id id, struct qemu_plugin_tb *tb)
{
    size_t count = qemu_plugin_tb_n_insns(tb);
    uint64_t address = qemu_plugin_tb_vaddr(tb);
    (void)id;
    if (address >= from && address < to) {
        struct block *block = malloc(sizeof *block);
        if (!block)
            abort();
        *block = (struct block){address, count, 0, NULL};
        do
            block->next = __atomic_load_n(&blocks, __ATOMIC_ACQUIRE);
        while (!__sync_bool_compare_and_swap(&blocks, block->next, block));
        qemu_plugin_register_vcpu_tb_exec_cb(tb, execute, NO_REGISTERS, block);
        return;
    }
    for (size_t nr = 0; nr < count; nr++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, nr);
        uint32_t number = marker(instruction);
        if (number == BEGIN)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, begin, NO_REGISTERS, NULL);
        else if (number == END)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, end, NO_REGISTERS, NULL);
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info,
                                                               int argc, char **argv)
{
    (void)info;
    for (int nr = 0; nr < argc; nr++) {
        char *value = strchr(argv[nr], '=');
        if (!value)
            return 1;
        *value++ = 0;
        if (!strcmp(argv[nr], "from"))
            from = strtoull(value, NULL, 16);
        else if (!strcmp(argv[nr], "to"))
            to = strtoull(value, NULL, 16);
        else if (!strcmp(argv[nr], "out"))
            out = fopen(value, "w");
        else if (!strcmp(argv[nr], "profile"))
            profile = strdup(value);
        else
            return 1;
    }
    if (!out)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    return 0;
}
