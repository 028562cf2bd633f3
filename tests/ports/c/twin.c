/* EmbeddingGemma in C99, answering `refembed verify`: an example of a port, with nothing under it but libc and libm.

     gcc -std=c99 -O2 -Wall -Wextra -Werror -o twin twin.c -lm
     refembed verify --command "./twin golden/twin/checkpoint"

   It reads a checkpoint folder (the golden twin's, or the real one's, only slowly), computes in float32, and speaks the
   JSON lines of spec/protocol.md on its standard input and output. For a port of your own the last part is the one to
   copy; the others show that JSON and safetensors are all one needs. In order: mistakes, memory and errors, JSON,
   checkpoint, tokenizer, model, protocol.

     ./twin CHECKPOINT --precision bfloat16   weights, and whatever an operation gives, rounded to bfloat16
     ./twin CHECKPOINT --precision int8       matrices in whole numbers, blocks of 32 with a float16 scale each
     ./twin CHECKPOINT --defect NAME          with a mistake of the tables below, or two: NAME+NAME
     ./twin --list                            the tables, in JSON

   The mistakes are there so that the diagnosis is tried on code that is not the reference. {"call": "start", "defect":
   NAME} makes the running program change to another one.

   Arrays are row after row. Shapes are in [brackets], in the words of spec/README.md. Bytes are read as little-endian,
   which is safetensors' order and that of every machine this is likely to meet. */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROTOCOL 1
#define SPACE "\xE2\x96\x81"  /* U+2581, which the pieces have for a space */

/* Mistakes of real ports, by their ids in spec/defects.md. Each is a line or two where has("its id") stands. */
static const char *const DEFECTS[] = {
    "causal", "causal-sliding-layers", "causal-full-layers", "window-asymmetric", "window-not-halved", "window-ignored",
    "window-short-on-the-left", "window-one-short", "window-one-long", "window-halved-1", "window-halved-2",
    "window-halved-3", "window-on-every-layer", "mask-dropped-without-padding", "layers-first-full", "layers-one-early",
    "layers-all-sliding", "layers-all-full", "dense-missing", "dense-first-only", "dense-twice", "pool-last",
    "pool-first", "pool-without-bos", "pool-without-eos", "pool-without-specials", "truncated-not-normalised",
    "not-normalised", "truncated-at-the-end", "prompt-missing", "prompt-e5", "prompt-query-everywhere",
    "prompt-document-everywhere", "prompt-similarity-everywhere", "prompt-without-title", "prompt-without-space",
    "prompt-twice", "bos-missing", "eos-missing", "specials-missing", "bos-eos-swapped", "bos-twice", "eos-twice",
    "ids-off-by-one", "newlines-lost", "leading-space-added", "lower-cased", "special-tokens-as-text",
    "cut-at-an-eighth", "cut-at-a-quarter", "cut-at-a-half", "cut-without-eos", "cut-at-the-start",
    "rotary-sliding-base-everywhere", "rotary-full-base-everywhere", "rotary-bases-swapped", "rotary-scaled",
    "rotary-interleaved", "rotary-missing", "norm-offset-missing", "norm-offset-twice", "norm-final-missing",
    "norm-post-missing", "query-key-norm-missing", "embedding-scale-missing", "embedding-scale-rounded",
    "embedding-scale-twice", "gelu-exact", "gelu-is-silu", "gate-and-up-swapped", "scores-capped",
    "scores-scaled-by-width", "scores-not-scaled", "zeros", NULL,
};
/* Changes that alter nothing. */
static const char *const CONTROLS[] = {
    "dense-before-mean", "sum-in-place-of-mean", "scale-by-width-over-heads", "normalised-first",
    "constant-on-every-score", NULL,
};
/* Mistakes that no catalogue has, each with what it is. */
static const char *const OTHERS[] = {
    "layer-skipped", "the layer in the middle is left out",
    "key-and-value-swapped", "the matrices of key and value are swapped",
    "query-and-key-norm-swapped", "the norms of query and key are swapped",
    "keys-one-ahead", "keys are rotated by the next token's angle",
    "heads-reversed", "the heads stand in reverse order before the output matrix",
    "gelu-quick", "the sigmoid approximation of GELU",
    "up-missing", "the gate is not multiplied by up",
    "residual-missing", "the first layer's MLP replaces the stream in place of being added to it",
    "dense-row-negated", "the first row of the last matrix has the wrong sign",
    "numbers-reversed", "a vector's numbers stand in reverse order", NULL,
};
static char defect[100];  /* one of them, or two with a + between */

static int has(const char *name) {
    size_t length = strlen(name);
    for (const char *place = defect; *place && (place = strstr(place, name)); place += length)
        if ((place == defect || place[-1] == '+') && (!place[length] || place[length] == '+')) return 1;
    return 0;
}

/* ---------------------------------------------------------------------------------------------------------------------
   Memory and errors. Whatever is taken stays until release() goes back to a mark: a layer's arrays, a text's, a
   request's. Whatever is wrong leaves by refuse(), which ends the request, or the program while it loads. */

typedef union Block {
    union Block *before;
    double align;
} Block;

static Block *blocks;
static jmp_buf refused;
static char problem[300];

static void need(int holds, const char *format, ...) {
    va_list values;
    if (holds) return;
    va_start(values, format);
    vsnprintf(problem, sizeof problem, format, values);
    va_end(values);
    longjmp(refused, 1);
}

static void *take(size_t count, size_t size) {
    Block *block = NULL;
    if (size == 0 || count <= (SIZE_MAX - sizeof *block) / size) block = calloc(1, sizeof *block + count * size);
    need(block != NULL, "out of memory");
    block->before = blocks;
    blocks = block;
    return block + 1;
}

static void release(Block *mark) {
    while (blocks != mark) {
        Block *before = blocks->before;
        free(blocks);
        blocks = before;
    }
}

/* ---------------------------------------------------------------------------------------------------------------------
   JSON: a tree of nodes over the text itself, in which strings are unescaped where they stand. */

enum { DEEPEST = 32 };

typedef struct Json {
    char kind;                  /* { [ " 0 t f n: how it begins, 0 for any number */
    double number;
    char *text;                 /* a string's UTF-8, closed by a zero byte; it may hold others */
    size_t length;
    const char *name;           /* of an object's member */
    size_t name_length;
    struct Json *first, *next;  /* the first thing inside; the next one beside */
} Json;

static char *unread;  /* the rest of the text, which a zero byte ends */

static void skip_space(void) { unread += strspn(unread, " \t\r\n"); }

static long read_hex4(void) {
    char digits[5] = "";
    long value;
    strncpy(digits, unread, 4);
    need(strspn(digits, "0123456789abcdefABCDEF") == 4, "JSON: an escape needs four hexadecimal digits");
    value = strtol(digits, NULL, 16);
    unread += 4;
    return value;
}

static char *write_utf8(char *to, long code) {
    static const int lead[] = {0, 0xC0, 0xE0, 0xF0};
    int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    *to++ = (char)(lead[more] | code >> 6 * more);
    while (more--) *to++ = (char)(0x80 | (code >> 6 * more & 0x3F));
    return to;
}

/* What stands after a backslash. A character beyond 0xFFFF is spelled as two halves, \uD83D\uDD34. */
static char *read_escape(char *to) {
    static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    const char *letter = *unread ? strchr(letters, *unread) : NULL;
    long code;
    if (letter) {
        unread++;
        *to = meant[letter - letters];
        return to + 1;
    }
    need(*unread++ == 'u', "JSON: an unknown escape in a string");
    code = read_hex4();
    if (code >= 0xD800 && code < 0xDC00) {
        long low;
        need(unread[0] == '\\' && unread[1] == 'u', "JSON: half a character in a string");
        unread += 2;
        low = read_hex4();
        need(low >= 0xDC00 && low < 0xE000, "JSON: half a character in a string");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    need(code < 0xD800 || code > 0xDFFF, "JSON: half a character in a string");
    return write_utf8(to, code);  /* never longer than what it replaces */
}

static char *read_string(size_t *length) {
    char *start = unread + 1, *to = start;
    need(*unread == '"', "JSON: a string is needed");
    for (unread++; *unread != '"';) {
        need((unsigned char)*unread >= ' ', "JSON: a string that does not end");
        if (*unread == '\\') {
            unread++;
            to = read_escape(to);
        } else {
            *to++ = *unread++;
        }
    }
    unread++;
    *to = 0;
    *length = (size_t)(to - start);
    return start;
}

static Json *read_value(int depth);

static void read_members(Json *node, char close, int depth) {
    Json **last = &node->first;
    unread++;
    skip_space();
    while (*unread != close) {
        const char *name = NULL;
        size_t length = 0;
        if (node->first) {
            need(*unread++ == ',', "JSON: a comma is needed");
            skip_space();
        }
        if (close == '}') {
            name = read_string(&length);
            skip_space();
            need(*unread++ == ':', "JSON: a colon is needed");
        }
        *last = read_value(depth + 1);
        (*last)->name = name;
        (*last)->name_length = length;
        last = &(*last)->next;
        skip_space();
    }
    unread++;
}

static Json *read_value(int depth) {
    Json *node = take(1, sizeof *node);
    need(depth < DEEPEST, "JSON: nested too deeply");
    skip_space();
    node->kind = *unread;
    if (*unread == '{') {
        read_members(node, '}', depth);
    } else if (*unread == '[') {
        read_members(node, ']', depth);
    } else if (*unread == '"') {
        node->text = read_string(&node->length);
    } else if (*unread == '-' || (*unread >= '0' && *unread <= '9')) {
        node->kind = '0';
        node->number = strtod(unread, &unread);
    } else {
        size_t letters = strspn(unread, "aeflnrstu");
        need((letters == 4 && (!strncmp(unread, "true", 4) || !strncmp(unread, "null", 4))) ||
                 (letters == 5 && !strncmp(unread, "false", 5)), "JSON: a value is needed");
        unread += letters;
    }
    return node;
}

static Json *read_json(char *text) {
    Json *node;
    unread = text;
    node = read_value(0);
    skip_space();
    need(*unread == 0, "JSON: something stands behind the value");
    return node;
}

/* The member of an object, NULL where there is none or it is null. */
static Json *member(const Json *object, const char *name) {
    Json *node = object && object->kind == '{' ? object->first : NULL;
    while (node && strcmp(node->name, name)) node = node->next;
    return node && node->kind != 'n' ? node : NULL;
}

static int is_text(const Json *node, const char *text) {
    return node && node->kind == '"' && node->length == strlen(text) && !memcmp(node->text, text, node->length);
}

static double number_in(const Json *object, const char *name, double least, double most) {
    const Json *node = member(object, name);
    need(node && node->kind == '0', "%s is missing or no number", name);
    need(node->number >= least && node->number <= most, "%s is %g, %g to %g needed", name, node->number, least, most);
    return node->number;
}

static int whole_in(const Json *object, const char *name, int least, int most) {
    double number = number_in(object, name, least, most);
    need(number == floor(number), "%s is %g, a whole number is needed", name, number);
    return (int)number;
}

/* ---------------------------------------------------------------------------------------------------------------------
   Checkpoint: config.json's numbers, and the parameters by their names in the safetensors files. */

enum { MOST = 1 << 20, MOST_LAYERS = 256 };  /* no size of a real model comes near */

enum { INPUT_NORM, QUERY, KEY, VALUE, OUTPUT, QUERY_NORM, KEY_NORM, ATTENTION_NORM, MLP_INPUT_NORM, GATE, UP, DOWN,
       MLP_NORM, WEIGHTS };
static const char *const WEIGHT_NAMES[WEIGHTS] = {
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm", "pre_feedforward_layernorm", "mlp.gate_proj",
    "mlp.up_proj", "mlp.down_proj", "post_feedforward_layernorm",
};

typedef struct {
    const float *weight[WEIGHTS];
    int sliding;
} Layer;

static enum { FLOAT32, BFLOAT16, INT8, PRECISIONS } precision;
static const char *const PRECISION_NAMES[PRECISIONS] = {"float32", "bfloat16", "int8"};

static struct {
    int vocabulary, width, mlp, heads, key_heads, head, dense, dimensions, layers, reach, context, bos, eos;
    float epsilon, scale;
    double sliding_base, full_base;
    const float *table, *norm, *dense_up, *dense_down;
    Layer layer[MOST_LAYERS];
} model;

typedef struct {
    const Json *header;
    const char *data;
    size_t size;
} Tensors;

static char *read_file(const char *folder, const char *name, size_t *size) {
    char *path = take(strlen(folder) + strlen(name) + 2, 1), *bytes;
    FILE *file;
    long end;
    sprintf(path, "%s/%s", folder, name);
    file = fopen(path, "rb");
    need(file != NULL, "%s cannot be opened", path);
    end = fseek(file, 0, SEEK_END) ? -1 : ftell(file);
    rewind(file);
    need(end >= 0, "%s cannot be read", path);
    *size = (size_t)end;
    bytes = take(*size + 1, 1);
    need(fread(bytes, 1, *size, file) == *size, "%s cannot be read", path);
    fclose(file);
    return bytes;
}

/* A safetensors file: 8 bytes that count the header's, the header in JSON, and the numbers of all tensors. */
static Tensors open_tensors(const char *folder, const char *name) {
    Tensors file;
    size_t size, header = 0;
    char *bytes = read_file(folder, name, &size), *copy;
    need(size >= 8, "%s is no safetensors file", name);
    for (int place = 7; place >= 0; place--) header = header << 8 | (unsigned char)bytes[place];
    need(header <= size - 8, "%s ends within its header", name);
    copy = take(header + 1, 1);
    memcpy(copy, bytes + 8, header);
    file.header = read_json(copy);
    file.data = bytes + 8 + header;
    file.size = size - 8 - header;
    return file;
}

/* The nearest bfloat16, of two equally near the even one; any number as it is at another precision. */
static float rounded(float x) {
    uint32_t bits;
    if (precision != BFLOAT16 || !isfinite(x)) return x;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

/* What is left of a row in blocks of 32 whole numbers from -127 to 127, each block with a scale: spec/09. */
static void quantize(float *row, int columns) {
    for (int start = 0; start < columns; start += 32) {
        int end = start + 32 < columns ? start + 32 : columns, exponent;
        double scale = 0, step;
        for (int k = start; k < end; k++) scale = fmax(scale, fabs(row[k]) / 127.0);
        frexp(scale, &exponent);
        step = ldexp(1, exponent > -13 ? exponent - 11 : -24);  /* from one float16 to the next */
        scale = ceil(scale / step) * step;
        need(scale <= 65504, "a weight is too large for a float16 scale");
        for (int k = start; k < end && scale > 0; k++) row[k] = (float)(rint(row[k] / scale) * scale);
    }
}

/* [rows, columns], or [rows] where columns is 0. Copied, since the file need not put it where a float may lie. */
static const float *tensor(Tensors file, const char *name, int rows, int columns) {
    const Json *entry = member(file.header, name), *shape = member(entry, "shape");
    const Json *begin = member(entry, "data_offsets"), *end;
    size_t count = (size_t)rows * (size_t)(columns ? columns : 1);
    float *copy;
    begin = begin ? begin->first : NULL;
    end = begin ? begin->next : NULL;
    need(is_text(member(entry, "dtype"), "F32"), "%s is missing, or not F32", name);
    shape = shape ? shape->first : NULL;
    need(shape && shape->number == rows && (columns ? shape->next && shape->next->number == columns : !shape->next),
         "%s has another shape than (%d, %d)", name, rows, columns);
    need(end && begin->number >= 0 && begin->number <= end->number && end->number <= (double)file.size &&
             end->number - begin->number == (double)(count * sizeof *copy), "%s lies outside its file", name);
    copy = take(count, sizeof *copy);
    memcpy(copy, file.data + (size_t)begin->number, count * sizeof *copy);
    for (size_t i = 0; i < count; i++) copy[i] = rounded(copy[i]);
    for (int row = 0; row < rows && precision == INT8; row++) quantize(copy + (size_t)row * columns, columns);
    return copy;
}

static int rows_of(Tensors file, const char *name) {
    const Json *shape = member(member(file.header, name), "shape");
    need(shape && shape->first && shape->first->number >= 1 && shape->first->number <= MOST, "%s has no shape", name);
    return (int)shape->first->number;
}

static void read_config(const char *folder) {
    size_t size;
    const Json *config = read_json(read_file(folder, "config.json", &size)), *kind, *both;
    double sliding_base, full_base, scalar;
    int window, index = 0, by = has("layers-first-full") - has("layers-one-early");
    both = member(config, "use_bidirectional_attention");
    need(both && both->kind == 't', "use_bidirectional_attention is not true: a causal Gemma 3");
    model.vocabulary = whole_in(config, "vocab_size", 1, MOST);
    model.width = whole_in(config, "hidden_size", 1, MOST);
    model.mlp = whole_in(config, "intermediate_size", 1, MOST);
    model.heads = whole_in(config, "num_attention_heads", 1, MOST);
    model.key_heads = whole_in(config, "num_key_value_heads", 1, model.heads);
    model.head = whole_in(config, "head_dim", 2, MOST);
    model.layers = whole_in(config, "num_hidden_layers", 1, MOST_LAYERS);
    model.context = whole_in(config, "max_position_embeddings", 24, MOST);
    model.bos = whole_in(config, "bos_token_id", 0, model.vocabulary - 1);
    model.eos = whole_in(config, "eos_token_id", 0, model.vocabulary - 1);
    model.epsilon = (float)number_in(config, "rms_norm_eps", 0, 1);
    scalar = number_in(config, "query_pre_attn_scalar", 1, MOST);
    if (has("scores-not-scaled")) scalar = 1;
    if (has("scores-scaled-by-width")) scalar = model.width;
    if (has("scale-by-width-over-heads")) scalar = (double)model.width / model.heads;
    model.scale = (float)pow(scalar, -0.5);
    sliding_base = number_in(config, "rope_local_base_freq", 1, 1e12);
    full_base = number_in(config, "rope_theta", 1, 1e12);
    model.sliding_base = has("rotary-full-base-everywhere") || has("rotary-bases-swapped") ? full_base : sliding_base;
    model.full_base = has("rotary-sliding-base-everywhere") || has("rotary-bases-swapped") ? sliding_base : full_base;
    need(model.head % 2 == 0 && model.heads % model.key_heads == 0, "heads do not fit each other");
    window = whole_in(config, "sliding_window", 2, MOST);  /* of both sides; an odd one was rewritten to one side + 1 */
    model.reach = window % 2 ? window - 1 : window / 2;
    kind = member(config, "layer_types");
    for (kind = kind ? kind->first : NULL; kind && index < model.layers; kind = kind->next, index++)
        model.layer[(index + by + model.layers) % model.layers].sliding =
            has("layers-all-sliding") || (is_text(kind, "sliding_attention") && !has("layers-all-full"));
    need(index == model.layers, "layer_types does not name %d layers", model.layers);
    if (has("window-not-halved")) model.reach = 2 * model.reach - 1;
    if (has("window-ignored")) model.reach = model.context;
    model.reach += has("window-one-long") - has("window-one-short");
    model.reach >>= has("window-halved-1") + 2 * has("window-halved-2") + 3 * has("window-halved-3");
}

static void read_parameters(const char *folder) {
    Tensors file = open_tensors(folder, "model.safetensors");
    Tensors up = open_tensors(folder, "2_Dense/model.safetensors");
    Tensors down = open_tensors(folder, "3_Dense/model.safetensors");
    int width = model.width, mlp = model.mlp, head = model.head;
    int queries = model.heads * head, keys = model.key_heads * head;
    const int shapes[WEIGHTS][2] = {{width}, {queries, width}, {keys, width}, {keys, width}, {width, queries}, {head},
                                    {head}, {width}, {width}, {mlp, width}, {mlp, width}, {width, mlp}, {width}};
    for (int index = 0; index < model.layers; index++)
        for (int i = 0; i < WEIGHTS; i++) {
            char name[100];
            snprintf(name, sizeof name, "layers.%d.%s.weight", index, WEIGHT_NAMES[i]);
            model.layer[index].weight[i] = tensor(file, name, shapes[i][0], shapes[i][1]);
        }
    model.table = tensor(file, "embed_tokens.weight", model.vocabulary, width);
    model.norm = tensor(file, "norm.weight", width, 0);
    model.dense = rows_of(up, "linear.weight");  /* config.json says neither size of the dense head */
    model.dimensions = rows_of(down, "linear.weight");
    model.dense_up = tensor(up, "linear.weight", model.dense, width);
    model.dense_down = tensor(down, "linear.weight", model.dimensions, model.dense);
}

/* ---------------------------------------------------------------------------------------------------------------------
   Tokenizer: tokenizer.json's added tokens, its pieces, and its merges in order of rank. */

typedef struct {
    const char *text;
    size_t length;
    int id, special;
} Piece;

typedef struct {
    int left, right, merged, rank;  /* the lower its rank, the earlier a merge is made */
} Merge;

typedef struct {
    int *id, count;
} Ids;

static struct {
    Piece *pieces, *added;  /* pieces in the order of their bytes, added tokens in the file's */
    Merge *merges;          /* in the order of their two ids */
    int piece_count, added_count, merge_count, bytes[256];
} tokenizer;

static int count_of(const Json *list) {
    int count = 0;
    for (const Json *item = list ? list->first : NULL; item; item = item->next) count++;
    return count;
}

static int by_text(const void *first, const void *second) {
    const Piece *a = first, *b = second;
    int order = memcmp(a->text, b->text, a->length < b->length ? a->length : b->length);
    return order ? order : (a->length > b->length) - (a->length < b->length);
}

static int by_ids(const void *first, const void *second) {
    const Merge *a = first, *b = second;
    return a->left != b->left ? a->left - b->left : a->right - b->right;
}

/* The id of a piece, -1 where there is none. */
static int piece_of(const char *text, size_t length) {
    Piece wanted = {text, length, 0, 0}, *found;
    found = bsearch(&wanted, tokenizer.pieces, (size_t)tokenizer.piece_count, sizeof wanted, by_text);
    return found ? found->id : -1;
}

static const Merge *merge_of(int left, int right) {
    Merge wanted = {left, right, 0, 0};
    return bsearch(&wanted, tokenizer.merges, (size_t)tokenizer.merge_count, sizeof wanted, by_ids);
}

static void read_merge(const Json *pair, Merge *merge, int rank) {
    const Json *left = pair->first, *right = left ? left->next : NULL;
    need(right && left->kind == '"' && right->kind == '"', "merge %d is not two pieces", rank);
    char *both = take(left->length + right->length + 1, 1);
    memcpy(both, left->text, left->length);
    memcpy(both + left->length, right->text, right->length);
    merge->rank = rank;
    merge->left = piece_of(left->text, left->length);
    merge->right = piece_of(right->text, right->length);
    merge->merged = piece_of(both, left->length + right->length);
    need(merge->left >= 0 && merge->right >= 0 && merge->merged >= 0, "merge %d is of unknown pieces", rank);
}

static void read_added(const Json *token) {
    const Json *content = member(token, "content"), *special = member(token, "special");
    Piece piece = {content ? content->text : NULL, content ? content->length : 0, whole_in(token, "id", 0, MOST),
                   special && special->kind == 't'};
    need(piece.length > 0, "an added token has no content");
    tokenizer.added[tokenizer.added_count++] = piece;
}

static void read_tokenizer(const char *folder) {
    size_t size;
    const Json *file = read_json(read_file(folder, "tokenizer.json", &size)), *bpe = member(file, "model");
    const Json *vocabulary = member(bpe, "vocab"), *merges = member(bpe, "merges");
    const Json *added = member(file, "added_tokens");
    need(is_text(member(bpe, "type"), "BPE") && is_text(member(member(file, "normalizer"), "content"), SPACE),
         "tokenizer.json is not of Gemma's form");
    need(vocabulary && merges && added, "tokenizer.json lacks vocab, merges or added_tokens");
    tokenizer.pieces = take((size_t)count_of(vocabulary), sizeof *tokenizer.pieces);
    tokenizer.merges = take((size_t)count_of(merges), sizeof *tokenizer.merges);
    tokenizer.added = take((size_t)count_of(added), sizeof *tokenizer.added);
    for (const Json *node = vocabulary->first; node; node = node->next) {
        Piece piece = {node->name, node->name_length, 0, 0};
        need(piece.text && node->kind == '0' && node->number >= 0 && node->number <= MOST, "vocab is no object of ids");
        piece.id = (int)node->number;
        tokenizer.pieces[tokenizer.piece_count++] = piece;
    }
    qsort(tokenizer.pieces, (size_t)tokenizer.piece_count, sizeof *tokenizer.pieces, by_text);
    for (const Json *node = merges->first; node; node = node->next, tokenizer.merge_count++)
        read_merge(node, &tokenizer.merges[tokenizer.merge_count], tokenizer.merge_count);
    qsort(tokenizer.merges, (size_t)tokenizer.merge_count, sizeof *tokenizer.merges, by_ids);
    for (const Json *node = added->first; node; node = node->next) read_added(node);
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        sprintf(name, "<0x%02X>", (unsigned)byte);
        tokenizer.bytes[byte] = piece_of(name, 6);
        need(tokenizer.bytes[byte] >= 0, "tokenizer.json has no piece %s", name);
    }
}

/* How many bytes the character at the start of a text has. */
static size_t character(const char *text, size_t length) {
    unsigned char first = (unsigned char)*text;
    size_t size = first < 0x80 ? 1 : first >> 5 == 6 ? 2 : first >> 4 == 14 ? 3 : first >> 3 == 30 ? 4 : 0;
    need(size && size <= length, "a text is not valid UTF-8");
    for (size_t i = 1; i < size; i++) need((text[i] & 0xC0) == 0x80, "a text is not valid UTF-8");
    return size;
}

/* Byte-pair encoding of a text without added tokens: characters at first, spaces written as U+2581 and unknown ones as
   their bytes; then, again and again, the neighbours whose merge has the lowest rank, the leftmost of equals.
   merges[i] is that of the pieces i and i + 1. */
static void append_pieces(Ids *ids, const char *text, size_t length) {
    int *piece = ids->id + ids->count, count = 0;
    const Merge **merges = take(3 * length + 2, sizeof *merges);
    for (size_t size; length; text += size, length -= size) {
        size = character(text, length);
        const char *written = *text == ' ' ? SPACE : text;
        size_t written_size = *text == ' ' ? strlen(SPACE) : size;
        piece[count] = piece_of(written, written_size);
        if (piece[count] >= 0) count++;
        else for (size_t i = 0; i < written_size; i++) piece[count++] = tokenizer.bytes[(unsigned char)written[i]];
    }
    for (int i = 0; i + 1 < count; i++) merges[i] = merge_of(piece[i], piece[i + 1]);
    for (;;) {
        int best = -1;
        for (int i = 0; i + 1 < count; i++)
            if (merges[i] && (best < 0 || merges[i]->rank < merges[best]->rank)) best = i;
        if (best < 0) break;
        piece[best] = merges[best]->merged;
        count--;
        memmove(piece + best + 1, piece + best + 2, (size_t)(count - best - 1) * sizeof *piece);
        memmove(merges + best, merges + best + 1, (size_t)(count - best) * sizeof *merges);
        if (best > 0) merges[best - 1] = merge_of(piece[best - 1], piece[best]);
        if (best + 1 < count) merges[best] = merge_of(piece[best], piece[best + 1]);
    }
    ids->count += count;
}

/* The longest added token that a text begins with; NULL where there is none. */
static const Piece *added_token(const char *text, size_t length) {
    const Piece *longest = NULL;
    for (const Piece *token = tokenizer.added; token < tokenizer.added + tokenizer.added_count; token++)
        if (token->length <= length && !memcmp(token->text, text, token->length))
            if (!longest || token->length > longest->length) longest = token;
    return longest && longest->special && has("special-tokens-as-text") ? NULL : longest;
}

/* A prompted text as ports have spoilt it. */
static const char *spoilt(const char *text, size_t *length) {
    char *changed = take(*length + 2, 1), *to = changed;
    if (has("leading-space-added")) *to++ = ' ';
    for (size_t i = 0; i < *length; i++, to++) {
        *to = has("newlines-lost") && text[i] == '\n' ? ' ' : text[i];
        /* ASCII only: the C locale knows no other letters */
        if (has("lower-cased") && *to >= 'A' && *to <= 'Z') *to += 'a' - 'A';
    }
    *length = (size_t)(to - changed);
    return changed;
}

/* Ids as ports have got them wrong. */
static Ids misnumbered(Ids ids) {
    int last = ids.count - 1;
    for (int index = 1; index < last && has("ids-off-by-one"); index++)
        ids.id[index] += ids.id[index] + 1 < model.vocabulary;
    if (has("bos-eos-swapped")) ids.id[0] = model.eos, ids.id[last] = model.bos;
    if (has("eos-twice")) ids.id[ids.count++] = model.eos;
    if (has("bos-twice")) memmove(ids.id + 1, ids.id, (size_t)ids.count++ * sizeof *ids.id);
    if (has("eos-missing") || (has("specials-missing") && last > 1)) ids.count--;
    if (has("bos-missing") || has("specials-missing")) ids.id++, ids.count--;
    need(ids.count > 0, "no token is left of a text");
    return ids;
}

/* BOS, the pieces of a prompted text, EOS; cut to the context at the end of the pieces. */
static Ids tokenize(const char *text, size_t length) {
    Ids ids = {NULL, 0};
    size_t plain = 0;
    int share = has("cut-at-an-eighth") ? 8 : has("cut-at-a-quarter") ? 4 : has("cut-at-a-half") ? 2 : 1;
    int context = model.context / share, room = context - !has("cut-without-eos");
    if (*defect) text = spoilt(text, &length);
    ids.id = take(3 * length + 6, sizeof *ids.id);
    ids.id[ids.count++] = model.bos;
    for (size_t place = 0; place < length;) {
        const Piece *added = added_token(text + place, length - place);
        if (added) {
            append_pieces(&ids, text + plain, place - plain);
            ids.id[ids.count++] = added->id;
            plain = place + added->length;
        }
        place += added ? added->length : character(text + place, length - place);
    }
    append_pieces(&ids, text + plain, length - plain);
    for (int index = 0; index < ids.count; index++)
        need(ids.id[index] < model.vocabulary, "a text spells a token that has no vector");
    if (ids.count > room && has("cut-at-the-start"))
        memmove(ids.id + 1, ids.id + ids.count - (room - 1), (size_t)(room - 1) * sizeof *ids.id);
    if (ids.count > room) ids.count = room;
    if (ids.count < context) ids.id[ids.count++] = model.eos;
    return *defect ? misnumbered(ids) : ids;
}

/* ---------------------------------------------------------------------------------------------------------------------
   Model. Everything is float; rotary angles alone are made in double, since at token 2,047 a float is 1e-4 off. */

static const Json *wanted;  /* names of the stages to print as they are computed, NULL for none */
static int shown;           /* how many were */
static int window_dropped;  /* by mask-dropped-without-padding */

static void print_row(const float *x, int count) {
    for (int index = 0; index < count; index++) {
        putchar(index ? ',' : '[');
        if (isfinite(x[index])) printf("%.9g", x[index]);  /* nine digits: the same float when read again */
        else printf("NaN");
    }
    putchar(']');
}

/* A stage of spec/tensors.md, for "trace": [count, rows, columns], [rows, columns] where count is 0, or [columns]. */
static void show(int layer, const char *stage, const float *x, int count, int rows, int columns) {
    const Json *name = wanted ? wanted->first : NULL;
    char full[50] = "";
    if (layer >= 0) snprintf(full, sizeof full, "layer.%02d.", layer);
    strcat(full, stage);
    while (name && !is_text(name, full)) name = name->next;
    if (!name) return;
    printf("%s\"%s\": ", shown++ ? ", " : "", full);
    if (count) putchar('[');
    for (int block = 0; block < (count ? count : 1); block++) {
        if (block) putchar(',');
        if (rows) putchar('[');
        for (int row = 0; row < (rows ? rows : 1); row++, x += columns) {
            if (row) putchar(',');
            print_row(x, columns);
        }
        if (rows) putchar(']');
    }
    if (count) putchar(']');
}

/* Summed in double: on the twin an embedding uses 17 % of its allowed error so, 44 % summed in float. */
static float dot(const float *a, const float *b, int count) {
    double sum = 0;
    for (int index = 0; index < count; index++) sum += (double)a[index] * b[index];
    return (float)sum;
}

/* x [rows, in], weight [out, in], as stored  ->  [rows, out] */
static float *linear(const float *x, const float *weight, int rows, int in, int out) {
    float *y = take((size_t)rows * (size_t)out, sizeof *y);
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < out; column++)
            y[(size_t)row * out + column] = rounded(dot(x + (size_t)row * in, weight + (size_t)column * in, in));
    return y;
}

/* [rows, columns]  ->  [rows, columns]; the weight is stored less one */
static float *rms_norm(const float *x, const float *weight, int rows, int columns) {
    float *y = take((size_t)rows * (size_t)columns, sizeof *y);
    float offset = has("norm-offset-missing") ? 0 : has("norm-offset-twice") ? 2 : 1;
    for (int row = 0; row < rows; row++) {
        const float *in = x + (size_t)row * columns;
        float scale = 1 / sqrtf(dot(in, in, columns) / (float)columns + model.epsilon);
        for (int column = 0; column < columns; column++)
            y[(size_t)row * columns + column] = rounded(in[column] * scale * (offset + weight[column]));
    }
    return y;
}

/* [tokens, count, head]  ->  [count, tokens, head], or back with the first two numbers exchanged */
static float *swap_heads(const float *x, int tokens, int count) {
    float *y = take((size_t)tokens * (size_t)count * (size_t)model.head, sizeof *y);
    for (int token = 0; token < tokens; token++)
        for (int index = 0; index < count; index++)
            memcpy(y + ((size_t)index * tokens + token) * model.head, x + ((size_t)token * count + index) * model.head,
                   (size_t)model.head * sizeof *y);
    return y;
}

/* Turn numbers k and k + head/2 of each head by its token's angle. x [count, tokens, head] is changed. */
static void rotate(float *x, int count, int tokens, const Layer *layer, int ahead) {
    int half = model.head / 2;
    int step = has("rotary-interleaved") ? 2 : 1, other = has("rotary-interleaved") ? 1 : half;
    double base = layer->sliding ? model.sliding_base : model.full_base;
    double slower = has("rotary-scaled") && !layer->sliding ? 8 : 1;
    for (int token = 0; token < tokens && !has("rotary-missing"); token++)
        for (int k = 0; k < half; k++) {
            double angle = (token + ahead) / slower * pow(base, -2.0 * k / model.head);
            float cosine = (float)cos(angle), sine = (float)sin(angle);
            for (int index = 0; index < count; index++) {
                float *pair = x + ((size_t)index * tokens + token) * model.head + k * step, first = pair[0];
                pair[0] = rounded(first * cosine - pair[other] * sine);
                pair[other] = rounded(pair[other] * cosine + first * sine);
            }
        }
}

/* Which keys token i sees: from *first to *last. Both ways, and in a sliding layer no further than the reach. */
static void window_of(const Layer *layer, int i, int tokens, int *first, int *last) {
    int causal = has("causal") || (layer->sliding ? has("causal-sliding-layers") : has("causal-full-layers"));
    int left = model.reach - has("window-short-on-the-left"), right = model.reach;
    if (causal || has("window-asymmetric")) left = 2 * model.reach - 1;
    if (!(layer->sliding || has("window-on-every-layer")) || window_dropped) left = right = tokens;
    if (causal) right = 0;
    *first = i > left ? i - left : 0;
    *last = i + right < tokens ? i + right : tokens - 1;
}

/* weights [tokens]: the softmax of scores from first to last, and 0 elsewhere */
static void softmax(float *weights, const float *scores, int first, int last) {
    float largest = scores[first], sum = 0;
    for (int j = first; j <= last; j++) largest = fmaxf(largest, scores[j]);
    for (int j = first; j <= last; j++) sum += weights[j] = expf(scores[j] - largest);
    for (int j = first; j <= last; j++) weights[j] = rounded(weights[j] / sum);
}

/* query [heads, tokens, head], key and value [key_heads, tokens, head]  ->  [heads, tokens, head] */
static float *attend(const float *query, const float *key, const float *value, int index, int tokens) {
    size_t square = (size_t)tokens * (size_t)tokens, plane = (size_t)tokens * (size_t)model.head;
    float *scores = take(model.heads * square, sizeof *scores), *weights = take(model.heads * square, sizeof *weights);
    float *context = take(model.heads * plane, sizeof *context);
    int first, last;
    for (int h = 0; h < model.heads; h++)
        for (int i = 0; i < tokens; i++) {
            size_t shared = (size_t)(h / (model.heads / model.key_heads)) * plane;
            size_t row = h * square + (size_t)i * tokens;
            float *mean = context + (has("heads-reversed") ? model.heads - 1 - h : h) * plane + (size_t)i * model.head;
            for (int j = 0; j < tokens; j++) {
                scores[row + j] = rounded(model.scale * dot(query + h * plane + (size_t)i * model.head,
                                                            key + shared + (size_t)j * model.head, model.head));
                if (has("scores-capped")) scores[row + j] = 50 * tanhf(scores[row + j] / 50);
                if (has("constant-on-every-score")) scores[row + j] += 1;
            }
            window_of(&model.layer[index], i, tokens, &first, &last);
            softmax(weights + row, scores + row, first, last);
            for (int j = first; j <= last; j++)
                for (int k = 0; k < model.head; k++)
                    mean[k] += weights[row + j] * value[shared + (size_t)j * model.head + k];
            for (int k = 0; k < model.head; k++) mean[k] = rounded(mean[k]);
        }
    show(index, "attention.scores", scores, model.heads, tokens, tokens);
    show(index, "attention.weights", weights, model.heads, tokens, tokens);
    show(index, "attention.context", context, model.heads, tokens, model.head);
    return context;
}

/* x [tokens, width], normed  ->  [tokens, width] */
static float *attention(const float *x, int index, int tokens) {
    const Layer *layer = &model.layer[index];
    int heads = model.heads, key_heads = model.key_heads, head = model.head, width = model.width;
    int kv = has("key-and-value-swapped"), crossed = has("query-and-key-norm-swapped");
    float *query = swap_heads(linear(x, layer->weight[QUERY], tokens, width, heads * head), tokens, heads);
    float *key = swap_heads(linear(x, layer->weight[KEY + kv], tokens, width, key_heads * head), tokens, key_heads);
    float *value = swap_heads(linear(x, layer->weight[VALUE - kv], tokens, width, key_heads * head), tokens, key_heads);
    float *output;
    show(index, "attention.query", query, heads, tokens, head);
    show(index, "attention.key", key, key_heads, tokens, head);
    show(index, "attention.value", value, key_heads, tokens, head);
    if (!has("query-key-norm-missing")) {
        query = rms_norm(query, layer->weight[QUERY_NORM + crossed], heads * tokens, head);
        key = rms_norm(key, layer->weight[KEY_NORM - crossed], key_heads * tokens, head);
    }
    show(index, "attention.query_norm", query, heads, tokens, head);
    show(index, "attention.key_norm", key, key_heads, tokens, head);
    rotate(query, heads, tokens, layer, 0);
    rotate(key, key_heads, tokens, layer, has("keys-one-ahead"));
    show(index, "attention.query_rotated", query, heads, tokens, head);
    show(index, "attention.key_rotated", key, key_heads, tokens, head);
    output = swap_heads(attend(query, key, value, index, tokens), heads, tokens);
    output = linear(output, layer->weight[OUTPUT], tokens, heads * head, width);
    show(index, "attention.output", output, 0, tokens, width);
    return output;
}

static float gelu(float x) {
    if (has("gelu-is-silu")) return x / (1 + expf(-x));
    if (has("gelu-quick")) return x / (1 + expf(-1.702f * x));
    if (has("gelu-exact")) return 0.5f * x * (1 + erff(x * 0.70710678f));
    return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));  /* sqrt(2 / pi) */
}

/* x [tokens, width], normed  ->  [tokens, width] */
static float *gated_mlp(const float *x, int index, int tokens) {
    const Layer *layer = &model.layer[index];
    size_t count = (size_t)tokens * (size_t)model.mlp;
    float *gate = linear(x, layer->weight[GATE], tokens, model.width, model.mlp);
    float *up = linear(x, layer->weight[UP], tokens, model.width, model.mlp);
    float *gated = take(count, sizeof *gated), *output;
    int swapped = has("gate-and-up-swapped"), missing = has("up-missing");
    for (size_t i = 0; i < count; i++)
        gated[i] = rounded(rounded(gelu(swapped ? up[i] : gate[i])) * (missing ? 1 : swapped ? gate[i] : up[i]));
    output = linear(gated, layer->weight[DOWN], tokens, model.mlp, model.width);
    show(index, "mlp.gate", gate, 0, tokens, model.mlp);
    show(index, "mlp.up", up, 0, tokens, model.mlp);
    show(index, "mlp.gated", gated, 0, tokens, model.mlp);
    show(index, "mlp.output", output, 0, tokens, model.width);
    return output;
}

/* x [tokens, width] is changed: two updates, each between two norms, are added to it */
static void run_layer(float *x, int index, int tokens) {
    const Layer *layer = &model.layer[index];
    Block *mark = blocks;
    float *normed = rms_norm(x, layer->weight[INPUT_NORM], tokens, model.width), *update;
    size_t count = (size_t)tokens * (size_t)model.width;
    show(index, "attention.norm", normed, 0, tokens, model.width);
    update = attention(normed, index, tokens);
    if (!has("norm-post-missing")) update = rms_norm(update, layer->weight[ATTENTION_NORM], tokens, model.width);
    show(index, "attention.update", update, 0, tokens, model.width);
    for (size_t i = 0; i < count; i++) x[i] = rounded(x[i] + update[i]);
    normed = rms_norm(x, layer->weight[MLP_INPUT_NORM], tokens, model.width);
    show(index, "mlp.norm", normed, 0, tokens, model.width);
    update = gated_mlp(normed, index, tokens);
    if (!has("norm-post-missing")) update = rms_norm(update, layer->weight[MLP_NORM], tokens, model.width);
    show(index, "mlp.update", update, 0, tokens, model.width);
    for (size_t i = 0; i < count; i++) x[i] = rounded((index == 0 && has("residual-missing") ? 0 : x[i]) + update[i]);
    show(index, "out", x, 0, tokens, model.width);
    release(mark);
}

/* states [tokens, width]  ->  their mean [width] */
static float *pool(const float *states, int tokens) {
    float *pooled = take((size_t)model.width, sizeof *pooled);
    int first = has("pool-last") ? tokens - 1 : 0, end = tokens;
    if (has("pool-without-bos") || has("pool-without-specials")) first = 1;
    if (has("pool-without-eos") || (has("pool-without-specials") && tokens > 2)) end = tokens - 1;
    if (has("pool-first")) end = 1;
    for (int column = 0; column < model.width; column++) {
        double sum = 0;
        for (int token = first; token < end; token++) sum += states[(size_t)token * model.width + column];
        pooled[column] = rounded((float)(has("sum-in-place-of-mean") ? sum : sum / (end - first)));
    }
    return pooled;
}

/* x [rows, width]  ->  [rows, dimensions], and on the way *up [rows, dense] */
static float *dense_head(const float *x, int rows, float **up) {
    *up = linear(x, model.dense_up, rows, model.width, model.dense);
    return linear(*up, model.dense_down, rows, model.dense, model.dimensions);
}

/* The first numbers of a vector [model.dimensions], made unit length  ->  [dimensions] */
static float *finish(const float *projected, int dimensions) {
    float *vector = take((size_t)dimensions, sizeof *vector), length;
    float whole = sqrtf(dot(projected, projected, model.dimensions)), divisor = has("normalised-first") ? whole : 1;
    if (has("truncated-at-the-end")) projected += model.dimensions - dimensions;
    for (int i = 0; i < dimensions; i++)
        vector[i] = projected[has("numbers-reversed") ? dimensions - 1 - i : i] / divisor;
    length = has("truncated-not-normalised") ? whole : sqrtf(dot(vector, vector, dimensions));
    for (int i = 0; i < dimensions; i++) vector[i] /= has("zeros") ? INFINITY : has("not-normalised") ? 1 : length;
    return vector;
}

/* ids  ->  [dimensions] of unit length */
static float *embed(Ids ids, int dimensions) {
    int tokens = ids.count, width = model.width;
    float *x = take((size_t)tokens * (size_t)width, sizeof *x), *states, *pooled, *up, *projected, *vector;
    float scale = sqrtf((float)width);
    int exponent;
    frexpf(scale, &exponent);
    if (has("embedding-scale-rounded")) scale = ldexpf(roundf(ldexpf(scale, 8 - exponent)), exponent - 8);
    if (has("embedding-scale-missing")) scale = 1;
    if (has("embedding-scale-twice")) scale *= scale;
    for (int token = 0; token < tokens; token++)
        for (int column = 0; column < width; column++)
            x[(size_t)token * width + column] = rounded(model.table[(size_t)ids.id[token] * width + column] * scale);
    show(-1, "embedded", x, 0, tokens, width);
    for (int index = 0; index < model.layers; index++)
        if (index != model.layers / 2 || !has("layer-skipped")) run_layer(x, index, tokens);
    states = has("norm-final-missing") ? x : rms_norm(x, model.norm, tokens, width);
    if (has("dense-before-mean")) states = dense_head(states, tokens, &up);
    pooled = pool(states, tokens);
    projected = dense_head(pooled, 1, &up);
    if (has("dense-twice")) projected = dense_head(projected, 1, &up);
    if (has("dense-missing") || has("dense-before-mean")) projected = pooled;
    if (has("dense-first-only")) projected = up;
    if (has("dense-row-negated")) projected[0] = -projected[0];
    vector = finish(projected, dimensions);
    show(-1, "final_norm", states, 0, tokens, width);
    show(-1, "pooled", pooled, 0, 0, width);
    show(-1, "projected_up", up, 0, 0, model.dense);
    show(-1, "projected", projected, 0, 0, model.dimensions);
    show(-1, "embedding", vector, 0, 0, dimensions);
    return vector;
}

/* ---------------------------------------------------------------------------------------------------------------------
   Protocol: a JSON object a line in, one a line out. Everything about a request that may be wrong is found before its
   answer begins, so that an answer is whole or an error. */

static const char *const PROMPTS[][2] = {
    {"query", "task: search result | query: "},
    {"document", "title: none | text: "},
    {"question answering", "task: question answering | query: "},
    {"fact checking", "task: fact checking | query: "},
    {"classification", "task: classification | query: "},
    {"clustering", "task: clustering | query: "},
    {"sentence similarity", "task: sentence similarity | query: "},
    {"code retrieval", "task: code retrieval | query: "},
    {"summarization", "task: summarization | query: "},
};
enum { TASKS = sizeof PROMPTS / sizeof *PROMPTS, QUERIES = 0, DOCUMENTS = 1, SIMILARITY = 6 };

static char *append(char *to, const char *text, size_t length) {
    memcpy(to, text, length);
    return to + length;
}

static const char *spoilt_prompt(const char *prompt, int document) {
    if (has("prompt-missing")) return "";
    if (has("prompt-query-everywhere")) return PROMPTS[QUERIES][1];
    if (has("prompt-document-everywhere")) return PROMPTS[DOCUMENTS][1];
    if (has("prompt-similarity-everywhere")) return PROMPTS[SIMILARITY][1];
    if (has("prompt-e5")) return document ? "passage: " : "query: ";
    return document && has("prompt-without-title") ? "text: " : prompt;
}

static Ids tokens_of(const Json *text) {
    need(text && text->kind == '"', "a text is no string");
    return tokenize(text->text, text->length);
}

/* {"text", "task", "title"}: the prompt is ours to put before it. */
static Ids prompted_tokens(const Json *item) {
    const Json *text = member(item, "text"), *task = member(item, "task"), *title = member(item, "title");
    const char *prompt = "";
    char *joined, *end;
    int index = 0;
    need(text && text->kind == '"' && (!title || title->kind == '"'), "a text or title is no string");
    while (task && index < TASKS && !is_text(task, PROMPTS[index][0])) index++;
    need(index < TASKS, "no such task");
    need(!title || is_text(task, "document"), "a title goes with the task document only");
    if (task) prompt = PROMPTS[index][1];
    if (*defect) prompt = spoilt_prompt(prompt, is_text(task, "document"));
    joined = end = take(text->length + 2 * (strlen(prompt) + (title ? title->length : 0) + 16), 1);
    if (title && title->length && !strcmp(prompt, PROMPTS[DOCUMENTS][1]) && !has("prompt-document-everywhere")) {
        end = append(end, "title: ", 7);
        end = append(end, title->text, title->length);
        end = append(end, " | text: ", 9);
    } else {
        end = append(end, prompt, strlen(prompt));
    }
    if (has("prompt-twice")) end = append(end, joined, (size_t)(end - joined));
    if (has("prompt-without-space") && end > joined) end--;
    end = append(end, text->text, text->length);
    return tokenize(joined, (size_t)(end - joined));
}

static void print_ids(Ids ids) {
    for (int index = 0; index < ids.count; index++) printf("%c%d", index ? ',' : '[', ids.id[index]);
    putchar(']');
}

static void answer_texts(const Json *request, int tokenizing) {
    const Json *plain = member(request, "plain"), *texts = plain ? plain : member(request, "texts"), *item;
    int dimensions = model.dimensions, count = count_of(texts), row = 0;
    Ids *ids = take((size_t)count + 1, sizeof *ids);
    need(texts && texts->kind == '[', "texts is no list");
    if (member(request, "dimensions")) dimensions = whole_in(request, "dimensions", 1, model.dimensions);
    window_dropped = has("mask-dropped-without-padding") && count > 1;
    for (item = texts->first; item; item = item->next, row++) {
        ids[row] = plain ? prompted_tokens(item) : tokens_of(item);
        if (ids[row].count != ids[0].count) window_dropped = 0;
    }
    printf(tokenizing ? "{\"ids\": [" : "{\"vectors\": [");
    for (row = 0; row < count; row++) {
        Block *mark = blocks;
        if (row) putchar(',');
        if (tokenizing) print_ids(ids[row]);
        else print_row(embed(ids[row], dimensions), dimensions);
        release(mark);
    }
    puts("]}");
}

static void answer_trace(const Json *request) {
    const Json *stages = member(request, "stages");
    Ids ids = tokens_of(member(request, "text"));
    need(stages && stages->kind == '[', "stages is no list");
    window_dropped = shown = 0;
    printf("{\"stages\": {");
    wanted = stages;
    embed(ids, model.dimensions);
    wanted = NULL;
    puts("}}");
}

static int is_in(const char *const *table, const char *name, size_t length) {
    while (*table && (strncmp(*table, name, length) || (*table)[length])) table++;
    return *table != NULL;
}

/* Make the mistakes of these names, joined by +; none where there is no name. */
static void choose(const char *folder, const char *names) {
    size_t length;
    for (const char *name = names; *name; name += length + (name[length] == '+')) {
        length = strcspn(name, "+");
        need(is_in(DEFECTS, name, length) || is_in(CONTROLS, name, length) || is_in(OTHERS, name, length),
             "no such mistake; --list has their names");
    }
    need(strlen(names) < sizeof defect, "too many mistakes");
    need(model.dense >= model.width && model.width == model.dimensions, "mistakes need a dense head of Gemma's form");
    strcpy(defect, names);
    read_config(folder);
}

/* 0 when told to stop */
static int answer(const char *folder, char *line) {
    const Json *request = read_json(line), *call = member(request, "call"), *names = member(request, "defect");
    if (is_text(call, "stop")) return 0;
    if (is_text(call, "start") && names && names->kind == '"') choose(folder, names->text);
    if (is_text(call, "start"))
        printf("{\"protocol\": %d, \"name\": \"twin.c\", \"can\": [\"embed\", \"tokenize\", \"trace\", \"prompts\"]}\n",
               PROTOCOL);
    else if (is_text(call, "tokenize")) answer_texts(request, 1);
    else if (is_text(call, "embed")) answer_texts(request, 0);
    else if (is_text(call, "trace")) answer_trace(request);
    else need(0, "no such call");
    return 1;
}

/* One line without its end, closed by a zero byte; NULL at the end of the input. */
static char *read_line(void) {
    static char *line;
    static size_t room;
    size_t length = 0;
    int byte;
    while ((byte = getchar()) != EOF && byte != '\n') {
        if (length + 2 > room) {
            char *larger = realloc(line, room = 2 * room + 256);
            need(larger != NULL, "out of memory");
            line = larger;
        }
        line[length++] = (char)byte;
    }
    if (byte == EOF && length == 0) return NULL;
    if (length == 0) return strcpy(take(1, 1), "");
    line[length] = 0;
    return line;
}

static void print_list(void) {
    printf("{\"defects\": [");
    for (int i = 0; DEFECTS[i]; i++) printf("%s\"%s\"", i ? ", " : "", DEFECTS[i]);
    printf("], \"controls\": [");
    for (int i = 0; CONTROLS[i]; i++) printf("%s\"%s\"", i ? ", " : "", CONTROLS[i]);
    printf("], \"others\": {");
    for (int i = 0; OTHERS[i]; i += 2) printf("%s\"%s\": \"%s\"", i ? ", " : "", OTHERS[i], OTHERS[i + 1]);
    puts("}}");
}

/* The value of an option, "" where it is not given. */
static const char *option(int count, char **words, const char *name) {
    for (int i = 2; i + 1 < count; i += 2)
        if (!strcmp(words[i], name)) return words[i + 1];
    return "";
}

int main(int count, char **words) {
    static Block *loaded;
    const char *name = option(count, words, "--precision"), *mistakes = option(count, words, "--defect");
    if (count == 2 && !strcmp(words[1], "--list")) return print_list(), 0;
    if (setjmp(refused)) {
        fprintf(stderr, "twin: %s\n", problem);
        return 2;
    }
    need(count == 2 + 2 * !!*name + 2 * !!*mistakes, "twin CHECKPOINT [--precision NAME] [--defect NAME], or --list");
    while (*name && precision < PRECISIONS && strcmp(name, PRECISION_NAMES[precision])) precision++;
    need(precision < PRECISIONS, "no precision %s; there are float32, bfloat16 and int8", name);
    read_config(words[1]);
    read_parameters(words[1]);
    read_tokenizer(words[1]);
    if (*mistakes) choose(words[1], mistakes);
    loaded = blocks;
    for (;;) {
        if (setjmp(refused)) {
            wanted = NULL;
            printf("{\"error\": \"%s\"}\n", problem);  /* our own words only, so nothing in them needs escaping */
        } else {
            char *line = read_line();
            if (!line || !answer(words[1], line)) return 0;
        }
        fflush(stdout);
        release(loaded);
    }
}
