// Compiles with g++, through this folder's nvcc, what NVRTC would compile: once for each text and its defines.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <sstream>
#include <string>
#include <unistd.h>
#define API extern "C" __attribute__((visibility("default"))) int
enum { OK = 0, COMPILATION = 6, INVALID_OPTION = 5 };
struct Program { std::string text, image, log; };

static std::string architectures() {
    const char *told = getenv("STANDIN_ARCHITECTURES");
    return told ? told : "75,80,86,87,88,89,90,100,103,110,120,121";
}
API nvrtcGetNumSupportedArchs(int *n) {
    *n = 1;
    for (char c : architectures()) *n += c == ',';
    return OK;
}
API nvrtcGetSupportedArchs(int *to) {
    std::istringstream all(architectures());
    for (std::string one; std::getline(all, one, ',');) *to++ = atoi(one.c_str());
    return OK;
}
API nvrtcCreateProgram(Program **p, const char *text, const char *, int, const char *const *, const char *const *) {
    *p = new Program{text, "", ""};
    return OK;
}
API nvrtcDestroyProgram(Program **p) { delete *p, *p = nullptr; return OK; }
API nvrtcCompileProgram(Program *p, int n, const char *const *options) {
    std::string root = getenv("STANDIN"), defines;
    for (int i = 0; i < n; i++) {
        std::string option = options[i], architecture = "--gpu-architecture=compute_";
        if (option.rfind("-D", 0) == 0) defines += " " + option;
        bool known = ("," + architectures() + ",").find("," + option.substr(std::min(option.size(), architecture.size())) + ",") != std::string::npos;
        if (option.rfind(architecture, 0) == 0 && !known) { p->log = "invalid value for --gpu-architecture"; return INVALID_OPTION; }
    }
    if (getenv("STANDIN_TRACE")) fprintf(stderr, "stand-in: compiles%s\n", defines.c_str());
    std::string stem = root + "/kernels/" + std::to_string(std::hash<std::string>()(p->text + defines));
    std::string so = stem + ".so", source = stem + "." + std::to_string(getpid()) + ".cu";
    if (access(so.c_str(), F_OK)) {
        std::ofstream(source) << p->text;
        std::string command = root + "/bin/nvcc --kernels " + source + " " + so + defines + " 2> " + source + ".log";
        if (system(command.c_str())) {
            std::ifstream log(source + ".log");
            p->log.assign(std::istreambuf_iterator<char>(log), {});
            return COMPILATION;
        }
        unlink(source.c_str()), unlink((source + ".log").c_str());
    }
    p->image = "//standin:" + so + "\n";
    return OK;
}
API nvrtcGetPTXSize(Program *p, size_t *n) { *n = p->image.size() + 1; return OK; }
API nvrtcGetPTX(Program *p, char *to) { strcpy(to, p->image.c_str()); return OK; }
API nvrtcGetProgramLogSize(Program *p, size_t *n) { *n = p->log.size() + 1; return OK; }
API nvrtcGetProgramLog(Program *p, char *to) { strcpy(to, p->log.c_str()); return OK; }
